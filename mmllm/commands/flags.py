"""Flags that several commands share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mmllm.errors import InputError
from mmllm.stages import StageChanges
from mmllm.video.names import existing, nearest

StageFlags = Annotated[StageChanges, tyro.conf.arg(name="")]
"""The flags `--reducer`, `--path`, `--tokenizer` and `--encoder`; `name=""` leaves out the prefix `--stages.`."""

MOST = 1_000_000
"""Most frames and most tokens that a command takes; no model reads or writes as many."""


def given_file(path: Path) -> Path:
    """The file of a command's argument, whatever the Unicode form of its name.

    Raises:
        InputError: if it is missing; the message shows the nearest name.
    """
    place = existing(path)
    if place is None:
        raise InputError(f"{path}: cannot be read: No such file or directory{nearest(path)}")
    return place


def folder_rate(videos: Sequence[str | Path], fps: float | None) -> None:
    """Refuses a value of `--fps` that is no rate, or that no folder of images is there for.

    Raises:
        InputError: naming the option.
    """
    require_rate(fps)
    if fps is not None and not any((existing(video) or Path(video)).is_dir() for video in videos):
        raise InputError("--fps is the rate of folders of images, and no folder is given; a video has its own times")


def require_rate(fps: float | None) -> None:
    """Refuses a value of `--fps` that is no rate.

    Raises:
        InputError: naming the option.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"--fps {fps:g}: must be a positive number of images a second")


def checked_count(flag: str, value: int) -> int:
    """The value of a flag that counts something.

    Raises:
        InputError: if it is not positive, or more than anything can hold.
    """
    if not 1 <= value <= MOST:
        raise InputError(f"{flag} {value!s:.30}: must be from 1 to {MOST}")
    return value
