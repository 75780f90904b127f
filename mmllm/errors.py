"""What can go wrong by the user's doing, as exceptions that carry the command line's exit code."""

from __future__ import annotations


class MmllmError(Exception):
    """Base of all errors that are reported in one line, without a traceback."""

    exit_code = 1


class InputError(MmllmError, ValueError):
    """Something that the user gave cannot be used. The message names it and says what is allowed."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration names an unknown part or field, or gives a value that is not allowed."""


class CheckpointError(InputError):
    """Saved weights do not fit the model they are loaded into; the message lists the tensors."""


class PartialFailure(MmllmError):
    """Some items of a batch failed and were listed; the others were done."""

    exit_code = 3


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of Python's, or of torch's on any device, says that memory has run out."""
    message = str(problem)
    named = isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in message or "out of memory" in message.lower()
