"""Errors that a user can cause, as exceptions. Each has the exit code of the command line."""

from __future__ import annotations

import importlib.util

EXTRAS = {
    "demo": ("gradio", "matplotlib"),
    "decord": ("decord",),
    "openclip": ("open_clip",),
    "diffusers": ("diffusers",),
    "train": ("accelerate", "datasets", "peft", "matplotlib"),
    "eval": ("accelerate", "matplotlib"),
    "tune": ("optuna", "matplotlib"),
    "serve": ("fastapi", "uvicorn", "python_multipart"),
    "kv": ("constriction",),
    "rl": ("trl", "accelerate", "datasets", "peft"),
    "gguf": ("gguf", "accelerate"),
}
"""Extra of the package -> the libraries that it installs, by the names under which they are imported."""


class MmllmError(Exception):
    """Base of all errors that are reported in one line, without a traceback."""

    exit_code = 1


class InputError(MmllmError, ValueError):
    """The user gave something that cannot be used. The message names it and what is allowed."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration names an unknown part or field, or gives a value that is not allowed."""


class CheckpointError(InputError):
    """Saved weights do not fit the model. The message lists the tensors."""


class MissingExtra(InputError):
    """A library is needed that only an extra of the package installs. The message says what to install."""


class PartialFailure(MmllmError):
    """Some items of a batch failed and were listed. The others are done."""

    exit_code = 3


def require_extra(extra: str, use: str, *libraries: str) -> None:
    """Refuses what cannot work without an extra of the package, before any work is done.

    Args:
        extra: a name of `EXTRAS`.
        use: what needs it, as the beginning of a sentence: "the demo".
        libraries: those of its libraries that are needed; all if none is named.

    Raises:
        MissingExtra: if one of its libraries is not installed.
    """
    missing = [library for library in libraries or EXTRAS[extra] if not is_installed(library)]
    if missing:
        raise MissingExtra(f"{use} needs {', '.join(missing)}: pip install 'mmllm[{extra}]'")


def is_installed(library: str) -> bool:
    """Whether a library can be imported. A mere folder of its name, such as our room `datasets`, is none."""
    spec = importlib.util.find_spec(library)
    return spec is not None and spec.origin is not None


_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "failed to map segment")
"""Words of torch, of the system, and of the linker when a library does not fit into memory."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of Python, or of torch on any device, means that memory has run out."""
    message = str(problem).lower()
    memory_error = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"
    return memory_error or any(words in message for words in _OUT_OF_MEMORY)
