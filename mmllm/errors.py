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


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of Python, or of torch on any device, means that memory has run out."""
    message = str(problem)
    memory_error = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"
    return memory_error or "can't allocate memory" in message or "out of memory" in message.lower()
