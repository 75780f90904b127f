"""What a processor of transformers feeds to its model: the times in a prompt, and the frames that they stand before.

N prompt length, T frames, U runs of placeholders, C H W colours height width of a frame
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmllm.evaluation.clock_faults import Observation
from mmllm.evaluation.clock_situations import Situation
from mmllm.evaluation.clock_strip import read_strip

_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]{1,2}):([0-9]{2}(?:\.[0-9]+)?)")
_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*s(?:ec(?:onds?)?)?\b")
_BARE = re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)(?![\w.])")
_NEAR = 48
"""So many characters before or behind a frame, a time may be its own."""
_EXACT_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class WrittenTimes:
    """Times that stand beside the frames of a prompt."""

    times_s: tuple[float, ...]
    decimals: int
    """The most digits behind a point."""

    @property
    def tolerance_s(self) -> float:
        """Half of the last digit; 0 of whole seconds, which are either true or rounded."""
        return 0.5 * 10.0**-self.decimals if self.decimals else _EXACT_S


def written_times(texts: Sequence[str]) -> WrittenTimes | None:
    """The time beside each run of placeholders; None if they have none.

    Args:
        texts: U + 1: what stands before the first run, between them, and behind the last.
    """
    before = [_last_time(text[-_NEAR:]) for text in texts[:-1]]
    behind = [_first_time(text[:_NEAR]) for text in texts[1:]]
    for found in (before, behind):
        if found and all(found):
            times = [time for time in found if time]
            return WrittenTimes(times_s=tuple(time for time, _ in times), decimals=max(digits for _, digits in times))
    alone = [_BARE.findall(text[:_NEAR]) for text in texts[1:]]
    if alone and all(len(numbers) == 1 for numbers in alone):  # a bare number behind each frame
        numbers = [number for (number,) in alone]
        return WrittenTimes(times_s=tuple(map(float, numbers)), decimals=max(map(_digits, numbers)))
    return None


def _times(text: str) -> list[tuple[int, float, int]]:
    """Place, seconds and digits behind the point of each time in a text."""
    found = []
    for match in _CLOCK.finditer(text):
        hours, minutes, seconds = match.groups()
        found.append((match.start(), 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), _digits(seconds)))
    found += [(match.start(), float(match[1]), _digits(match[1])) for match in _SECONDS.finditer(text)]
    return sorted(found)


def _last_time(text: str) -> tuple[float, int] | None:
    times = _times(text)
    return times[-1][1:] if times else None


def _first_time(text: str) -> tuple[float, int] | None:
    times = _times(text)
    return times[0][1:] if times else None


def _digits(number: str) -> int:
    return len(number.partition(".")[2])


def prompt_texts(ids: Sequence[int], placeholders: set[int], tokenizer: Any) -> list[str]:
    """U + 1 texts: what stands before, between and behind the runs of placeholders of a prompt."""
    texts: list[str] = []
    last = True  # whether the piece before was a run of placeholders
    for is_run, piece in itertools.groupby(ids, key=lambda token: token in placeholders):
        if is_run:
            texts += [""] if last else []
        else:
            texts.append(tokenizer.decode(list(piece)))
        last = is_run
    return [*texts, ""] if last else texts


def frame_numbers(inputs: Mapping[str, Any], video_processor: Any) -> list[list[int | None]]:
    """For each video the numbers that its frames show, in the order in which the model gets them; None if unreadable.

    Args:
        inputs: what a processor gave, with pixels as numpy arrays or tensors.
        video_processor: its part that prepared the frames, for the layout of patches.
    """
    return [[read_strip(picture) for picture in video] for video in _videos(inputs, video_processor)]


def _videos(inputs: Mapping[str, Any], video_processor: Any) -> list[np.ndarray]:
    """For each video T H W C, in any range of values."""
    pixels = inputs.get("pixel_values_videos", inputs.get("pixel_values"))
    if pixels is None:
        return []
    values = np.asarray(pixels, dtype=np.float32)
    if values.ndim == 5:  # B T C H W
        return list(np.moveaxis(values, 2, -1))
    if values.ndim == 4:  # frames C H W, of one video
        return [np.moveaxis(values, 1, -1)]
    if values.ndim != 2 or "video_grid_thw" not in inputs:
        return []
    side = int(video_processor.patch_size)
    merge = int(getattr(video_processor, "merge_size", None) or 1)
    merges = np.asarray(inputs.get("video_merge_sizes", [merge] * len(inputs["video_grid_thw"]))).tolist()
    together = values.shape[1] // (3 * side * side)
    videos, start = [], 0
    for (grids, rows, columns), merge in zip(np.asarray(inputs["video_grid_thw"]).tolist(), merges, strict=True):
        count = grids * rows * columns
        patches = values[start : start + count].reshape(
            grids, rows // merge, columns // merge, merge, merge, 3, together, side, side
        )
        start += count
        pictures = patches.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        videos.append(pictures.reshape(grids * together, rows * side, columns * side, 3))
    return videos


def prompt_observations(
    situation: Situation,
    numbers: Sequence[int | None],
    texts: Sequence[str],
    seconds_per_grid: float | None = None,
    together: int = 1,
) -> list[Observation]:
    """The times that a prompt with one video feeds to a model.

    Args:
        situation: what was given.
        numbers: T, of its frames.
        texts: as in `written_times`.
        seconds_per_grid: the step between temporal grids, if the processor gives one.
        together: frames of a temporal grid.
    """
    if not numbers or None in numbers:
        return []
    known = [int(number) for number in numbers if number is not None]
    seen: list[Observation] = []
    runs, written = len(texts) - 1, written_times(texts)
    units = grouped(known, 1 if runs == len(known) else together)
    if written is not None and len(units) == runs:
        times_s = np.array(written.times_s)
        seen.append(
            Observation(
                situation=situation, kind="time text", units=units, fed_s=times_s, tolerance_s=written.tolerance_s
            )
        )
    if seconds_per_grid is not None:
        units = grouped(known, together)
        step = np.arange(len(units)) * seconds_per_grid
        rounding_s = 0.5 / situation.average_fps + _EXACT_S  # even steps, and whole numbers of frames
        seen.append(
            Observation(
                situation=situation, kind="grid seconds", units=units, fed_s=step, tolerance_s=rounding_s, relative=True
            )
        )
    return seen


def grouped(numbers: Sequence[int], together: int) -> tuple[tuple[int, ...], ...]:
    """The frames of each temporal grid; the last frame fills up the last grid."""
    filled = [*numbers, *[numbers[-1]] * (-len(numbers) % together)]
    return tuple(tuple(filled[first : first + together]) for first in range(0, len(filled), together))
