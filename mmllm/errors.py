"""Errors that a user can cause, as exceptions. Each has the exit code of the command line."""

from __future__ import annotations


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


class PartialFailure(MmllmError):
    """Some items of a batch failed and were listed. The others are done."""

    exit_code = 3


_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "failed to map segment")
"""Words of torch, of the system, and of the linker when a library does not fit into memory."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of Python, or of torch on any device, means that memory has run out."""
    message = str(problem).lower()
    memory_error = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"
    return memory_error or any(words in message for words in _OUT_OF_MEMORY)
