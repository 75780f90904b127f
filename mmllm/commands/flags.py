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


def check_count(flag: str, value: int | None) -> None:
    """Refuses a count that is not positive, or that nothing can hold.

    Raises:
        InputError: naming the flag and what is allowed.
    """
    if value is not None and not 1 <= value <= MOST:
        raise InputError(f"{flag} {value!s:.30}: must be from 1 to {MOST}")
