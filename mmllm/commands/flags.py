"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import tyro

from mmllm.errors import InputError
from mmllm.stages import StageChanges

StageFlags = Annotated[StageChanges, tyro.conf.arg(name="")]
"""The flags `--reducer` and `--path`; `name=""` leaves out the prefix `--stages.`."""

MOST = 1_000_000
"""Most frames and most tokens that a command takes; no model reads or writes as many."""


def checked_count(flag: str, value: int) -> int:
    """The value of a flag that counts something.

    Raises:
        InputError: if it is not positive, or more than anything can hold.
    """
    if not 1 <= value <= MOST:
        raise InputError(f"{flag} {value!s:.30}: must be from 1 to {MOST}")
    return value
