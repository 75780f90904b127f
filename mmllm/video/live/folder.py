"""A folder that fills: with images, whose numbers are their times, or with clips, one behind the other.

A file is taken when another one follows it, or when it has not changed for a moment. Files are taken in the order of
their names, numbers as numbers. Nothing is remembered of those that were taken but the last name, and of those that
could not be read, their names while they are there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.video.errors import VideoDecodeError, VideoError
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
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name) if part)


class NewFiles:
    """The complete files of a folder as they come, until none has come for `idle_s` seconds.

    A file that its reader skips is not given again, and those that come later with an earlier name still are.

    Args:
        folder: that fills.
        idle_s: how long to wait for another file.
        stopped: asked between files and while waiting.
    """

    def __init__(self, folder: Path, idle_s: float, stopped: Stopped) -> None:
        self.folder, self.idle_s, self.stopped = folder, idle_s, stopped
        self._last: Key = ()
        self._skipped: set[str] = set()

    def skip(self, path: Path) -> None:
        """Notes that the file that was given last is none of the stream's."""
        self._skipped.add(path.name)

    def __iter__(self) -> Iterator[Path]:
        until = time.monotonic() + self.idle_s
        while not self.stopped():
            waiting = self._waiting()
            complete = [*waiting[:-1], *(path for path in waiting[-1:] if _settled(path))]
            for path in complete:
                yield path
                if path.name not in self._skipped:
                    self._last = names_in_order(path.name)
            if complete:
                until = time.monotonic() + self.idle_s
            elif time.monotonic() >= until and not any(_changes(path, self.idle_s) for path in waiting):
                return
            else:
                time.sleep(_POLL_S)

    def _waiting(self) -> list[Path]:
        """The files behind the last one, in order, without those that were skipped; forgets those that are gone."""
        behind = {
            entry.name: Path(entry.path)
            for entry in os.scandir(self.folder)
            if not entry.name.startswith(".") and names_in_order(entry.name) > self._last and entry.is_file()
        }
        self._skipped &= behind.keys()
        return [behind[name] for name in sorted(behind.keys() - self._skipped, key=names_in_order)]


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
    """
    end_s, first = 0.0, None
    files = NewFiles(folder, idle_s, stopped)
    for path in files:
        came = False
        try:
            if is_still_image(path):
                number, pixels = _number(path), load_image(path, limits)
                first = number if first is None else first
                frames: Iterator[tuple[float, Any]] = iter([((number - first) / fps, pixels)])
            else:
                frames = _clip(path, end_s, limits)
            for stamp_s, pixels in frames:
                came = True
                time_s, gap = clock.read(stamp_s)
                end_s = max(end_s, time_s)
                if ticks.take(time_s) or gap:
                    yield LiveFrame(pixels=pixels, time_s=time_s, arrived_s=time.monotonic(), gap=gap)
        except (VideoError, OSError) as problem:
            if not came:
                files.skip(path)
            yield _reason(path, problem)


def _reason(path: Path, problem: Exception) -> str:
    """Why a file cannot be read, in one line that names it once."""
    said = (isinstance(problem, OSError) and problem.strerror) or str(problem)
    said = " ".join(said.split()).replace(f" {str(path)!r}", "")
    return said if said.startswith(str(path)) else f"{path}: {said}"


def _clip(path: Path, start_s: float, limits: VideoLimits) -> Iterator[tuple[float, Any]]:
    """The frames of a clip with their times, the first of them a step behind `start_s`."""
    with open_video(path, limits=limits) as video:
        step_s = 1 / video.info.average_fps if start_s else 0.0
        for part in video.iterate(32):
            for pixels, time_s in zip(part.frames, part.times_s, strict=True):
                yield start_s + step_s + float(time_s - video.times_s[0]), pixels


def _number(path: Path) -> int:
    """The number that an image's name ends in.

    Raises:
        VideoDecodeError: if there is none.
    """
    numbers = _NUMBERS.findall(path.stem)
    if not numbers:
        raise VideoDecodeError(
            f"{path}: the name of an image in a folder that fills ends in its number, such as 000123.jpg"
        )
    return int(numbers[-1])


def _settled(path: Path) -> bool:
    """Whether a file has content, and has not changed for a moment."""
    try:
        return path.stat().st_size > 0 and not _changes(path, 0.0)
    except OSError:
        return False


def _changes(path: Path, within_s: float) -> bool:
    """Whether a file has changed within so many seconds, or within a moment; not if it is gone."""
    try:
        changed_s = path.stat().st_mtime
    except OSError:
        return False
    return abs(time.time() - changed_s) <= max(within_s, _SETTLED_S)
