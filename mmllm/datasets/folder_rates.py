"""How many images a second folders of frames have: a row says it by `fps`, or a command by `--fps`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mmllm.datasets.records import Dialogue, Media, Question
from mmllm.datasets.spans import number
from mmllm.errors import InputError

Item = TypeVar("Item", Dialogue, Question)


def rate_of(row: dict[str, Any]) -> float | None:
    """The images a second under a row's key `fps`; None if it has none.

    Raises:
        InputError: if it is not a positive number.
    """
    if row.get("fps") is None:
        return None
    fps = number(row["fps"], "'fps'", "a positive number of images a second")
    if fps <= 0:
        raise InputError(f"'fps' must be a positive number of images a second, not {fps:g}")
    return fps


def check_rate(fps: float | None, media: Iterable[Media]) -> None:
    """Refuses a rate for a row whose videos are files.

    Raises:
        InputError: naming a video.
    """
    videos = [medium.path for medium in media if medium.kind == "video"]
    if fps is not None and videos and not any(path.is_dir() for path in videos):
        raise InputError(f"'fps' is the rate of a folder of images, and {videos[0].name} is a file with its own times")


def with_rate(items: Sequence[Item], fps: float | None) -> list[Item]:
    """The items, with this rate where a row has none and shows a folder.

    Raises:
        InputError: if there is a rate, and no item shows a folder.
    """
    if fps is None:
        return list(items)
    rated = [
        replace(item, fps=fps) if item.fps is None and any(path.is_dir() for path in _videos(item)) else item
        for item in items
    ]
    if all(item.fps is None for item in rated):
        raise InputError("--fps is the rate of folders of images, and no row shows a folder")
    return rated


def folder_rates(items: Iterable[Item]) -> dict[str, float]:
    """Path of each folder of frames whose rate is given -> images a second.

    Raises:
        InputError: if rows give one folder different rates.
    """
    rates: dict[str, float] = {}
    for item in items:
        if item.fps is None:
            continue
        for path in _videos(item):
            if rates.setdefault(str(path), item.fps) != item.fps:
                raise InputError(f"{path}: rows give it {rates[str(path)]:g} and {item.fps:g} images a second ('fps')")
    return rates


def _videos(item: Dialogue | Question) -> list[Path]:
    if isinstance(item, Dialogue):
        return [medium.path for medium in item.media if medium.kind == "video"]
    return [] if item.video is None else [item.video]
