"""A folder that fills: with images, whose numbers are their times, or with clips, one behind the other.

A file is taken when another one follows it, or when it has not changed for a moment. Files are taken in the order of
their names, numbers as numbers. Nothing is remembered of those that were taken but the last name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.video.errors import VideoError
from mmllm.video.limits import VideoLimits
from mmllm.video.live.bytes import Stopped
from mmllm.video.live.clock import StreamClock, Ticks
from mmllm.video.live.frame import LiveFrame
from mmllm.video.opening import open_video
from mmllm.video.still_images import is_still_image, load_image

_POLL_S = 0.2
_SETTLED_S = 0.5
"""A file that has not changed for so long is complete."""
_NUMBERS = re.compile(r"(\d+)")
Key = tuple[Any, ...]


def names_in_order(name: str) -> Key:
    """By what names are sorted: their texts, and the numbers in them as numbers."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in _NUMBERS.split(name) if part)


def new_files(folder: Path, idle_s: float, stopped: Stopped) -> Iterator[Path]:
    """The complete files of a folder as they come, until none has come for `idle_s` seconds."""
    last: Key = ()
    until = time.monotonic() + idle_s
    while not stopped():
        waiting = sorted(
            (names_in_order(entry.name), entry.path)
            for entry in os.scandir(folder)
            if not entry.name.startswith(".") and names_in_order(entry.name) > last and entry.is_file()
        )
        complete = [path for number, (_, path) in enumerate(waiting) if number + 1 < len(waiting) or _settled(path)]
        for path in complete:
            last = names_in_order(Path(path).name)
            yield Path(path)
        if complete:
            until = time.monotonic() + idle_s
        elif time.monotonic() >= until and not waiting:
            return
        else:
            time.sleep(_POLL_S)


def folder_frames(
    folder: Path, fps: float, clock: StreamClock, ticks: Ticks, limits: VideoLimits, idle_s: float, stopped: Stopped
) -> Iterator[LiveFrame | str]:
    """The frames of a folder that fills; of a file that cannot be read, why.

    Args:
        folder: with images or clips.
        fps: images a second.
        clock: of the stream.
        ticks: which frames are taken.
        limits: of each file.
        idle_s: how long to wait for another file.
        stopped: asked between files and while waiting.

    Raises:
        InputError: if the name of an image has no number.
    """
    end_s, first = 0.0, None
    for path in new_files(folder, idle_s, stopped):
        try:
            if is_still_image(path):
                number = _number(path)
                first = number if first is None else first
                frames: Iterator[tuple[float, Any]] = iter([((number - first) / fps, load_image(path, limits))])
            else:
                frames = _clip(path, end_s, limits)
            for stamp_s, pixels in frames:
                time_s, gap = clock.read(stamp_s)
                end_s = max(end_s, time_s)
                if ticks.take(time_s) or gap:
                    yield LiveFrame(pixels=pixels, time_s=time_s, arrived_s=time.monotonic(), gap=gap)
        except (VideoError, OSError) as problem:
            yield f"{path}: {' '.join(str(problem).split())}"


def _clip(path: Path, start_s: float, limits: VideoLimits) -> Iterator[tuple[float, Any]]:
    """The frames of a clip with their times, the first of them a step behind `start_s`."""
    with open_video(path, limits=limits) as video:
        step_s = 1 / video.info.average_fps if start_s else 0.0
        for part in video.iterate(32):
            for pixels, time_s in zip(part.frames, part.times_s, strict=True):
                yield start_s + step_s + float(time_s - video.times_s[0]), pixels


def _number(path: Path) -> int:
    numbers = _NUMBERS.findall(path.stem)
    if not numbers:
        raise InputError(f"{path}: the name of an image in a folder that fills ends in its number, such as 000123.jpg")
    return int(numbers[-1])


def _settled(path: str) -> bool:
    """Whether a file has content, and has not changed for a moment."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size > 0 and time.time() - status.st_mtime > _SETTLED_S
