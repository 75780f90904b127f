"""When the frames of a video are shown, as hosted models are told it.

transformers computes times as index over average rate. Here a processor gets the decoded frames with a clock of
milliseconds: `fps` 1000, and the presentation time of each frame as its index. Then whatever a family computes of it
(time text, seconds between temporal grids) is true for late starts, edit lists, variable rates and parts of a video.

B rows, N prompt length, T frames or temporal grids, K ids of a text
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from mmllm.hosting.encoding import ROW_INPUTS
from mmllm.hosting.media import Medium
from mmllm.tokens import VideoClip

Times = Literal["own", "transformers", "text"]
"""`own`: the frames' presentation times. `transformers`: index over average rate. `text`: as `own`, and the time also
as text before each frame, for families that write none; they were not trained for it."""
MILLISECONDS = 1000
"""Ticks of the clock a second."""


def metadata_of(clip: VideoClip, times: Times) -> dict[str, Any] | None:
    """Fields of transformers' `VideoMetadata` for the frames of a clip. Lists are new: a processor may write into them.

    Args:
        clip: the frames.
        times: whose times.

    Returns:
        None if transformers would know nothing of these frames: they were in memory and are told as they would be.
    """
    height, width = clip.frames.shape[1:3]
    size = {"width": width, "height": height, "duration": clip.duration_s, "video_backend": "pyav"}
    if times != "transformers":
        ticks = [round(MILLISECONDS * float(time_s)) for time_s in clip.times_s]
        return {
            "fps": float(MILLISECONDS),
            "frames_indices": ticks,
            "total_num_frames": _ticks_in_all(ticks, clip.duration_s),
            **size,
        }
    fps, indices = clip.metadata.get("average_fps"), clip.metadata.get("indices")
    if fps is None or indices is None:
        return None
    return {
        "fps": float(fps),
        "frames_indices": list(indices),
        "total_num_frames": max(round(clip.duration_s * fps), max(indices) + 1),
        **size,
    }


def _ticks_in_all(ticks: Sequence[int], duration_s: float) -> int:
    """T times the mean step: processors take frames over this number for the rate of sampling."""
    if len(ticks) < 2 or ticks[-1] == ticks[0]:
        return max(1, round(MILLISECONDS * duration_s))
    return max(1, round(len(ticks) * (ticks[-1] - ticks[0]) / (len(ticks) - 1)))


def grid_times(times_s: np.ndarray, frames: int) -> np.ndarray:
    """float64, one for each temporal grid: the mean of its first and its last frame.

    Args:
        times_s: float64, T.
        frames: of a temporal grid; the last frame fills up the last grid.
    """
    filled = np.concatenate([times_s, np.repeat(times_s[-1:], -len(times_s) % frames)])
    groups = filled.reshape(-1, frames)
    return (groups[:, 0] + groups[:, -1]) / 2


def with_time_rows(rows: Tensor, types: Tensor, mask: Tensor, times_s: Sequence[Tensor], rate: float) -> Tensor:
    """int64, 3 B N: positions whose time follows from when each temporal grid is shown, not from their mean step.

    The time of a grid is floor(rate * seconds since the first grid), from the video's first position on.

    Args:
        rows: int64, 3 B N: time, height, width.
        types: B N, 2 at the tokens of videos.
        mask: B N.
        times_s: for each video in prompt order the seconds of its temporal grids.
        rate: positions a second.
    """
    rows, videos = rows.clone(), iter(times_s)
    for row in range(rows.shape[1]):
        here = mask[row].nonzero().squeeze(-1).tolist()
        kinds = types[row].tolist()
        for kind, run in itertools.groupby(here, key=kinds.__getitem__):
            if kind != 2:
                continue
            places, seconds = torch.tensor(list(run)), next(videos)
            ticks = (MILLISECONDS * (seconds - seconds[0])).round()  # whole milliseconds: 0.9999999 s is a second
            steps = (ticks * rate / MILLISECONDS).floor().long()
            start = rows[0, row, places[0]]
            rows[0, row, places] = start + steps.repeat_interleave(len(places) // len(seconds)).to(rows.device)
    return rows


def with_time_text(
    inputs: Mapping[str, Any], media: Sequence[Medium], texts: Sequence[Sequence[Sequence[int]]], opening: int
) -> dict[str, Any]:
    """A prompt of one row with text before the tokens of each frame.

    Args:
        inputs: of the prompt; all that have one entry for each position get one for each new position.
        media: with their places in the prompt.
        texts: for each medium and each of its frames ids of the text, K.
        opening: positions between a frame's text and its tokens where a template writes frames apart, such as a mark.
    """
    before: dict[int, Sequence[int]] = {}
    for medium, own in zip(media, texts, strict=True):
        before |= dict(zip(_beginnings(medium, opening), own, strict=True))
    length = inputs["input_ids"].shape[1]
    pieces, start = [], 0
    for place in [*sorted(before), length]:
        pieces.append((slice(start, place), before.get(place, ())))
        start = place
    new = dict(inputs)
    for name in ROW_INPUTS:
        if (values := inputs.get(name)) is None:
            continue
        parts = []
        for kept, ids in pieces:
            filling = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}.get(name, [0] * len(ids))
            parts += [values[:, kept], values.new_tensor([filling])[:, : len(ids)]]
        new[name] = torch.cat(parts, 1)
    return new


def _beginnings(medium: Medium, opening: int) -> list[int]:
    """The position before which the text of each frame stands.

    Tokens that are always kept belong to the frame behind them where nothing else stands between two frames.
    """
    places, frame_of = cast(Tensor, medium.places), cast(Tensor, medium.frame_of)
    beginnings: list[int] = []
    end = int(places[0])  # of the frame before
    for frame in range(medium.frames):
        own = places[frame_of == frame]
        first = int(own[0])
        fixed = int(((places >= end) & (places < first)).sum())
        beginnings.append((end if first - end == fixed else first) - opening)
        end = int(own[-1]) + 1
    return beginnings


def of_one_grid_each(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about videos whose temporal grids text has parted: each grid counts as a video of its own."""
    grids = facts.get("video_grid_thw")
    if grids is None:
        return dict(facts)
    times = grids[:, 0].tolist()
    parted = grids.repeat_interleave(grids[:, 0], dim=0).clone()
    parted[:, 0] = 1
    new = {**facts, "video_grid_thw": parted}
    if (seconds := facts.get("second_per_grid_ts")) is not None:
        new["second_per_grid_ts"] = [value for value, count in zip(seconds, times, strict=True) for _ in range(count)]
    return new


def part_of_clip(clip: VideoClip, frames: slice | np.ndarray, **changes: Any) -> VideoClip:
    """Some frames of a clip, with what belongs to them; `changes` are other fields."""
    metadata = dict(clip.metadata)
    if (indices := metadata.get("indices")) is not None:
        metadata["indices"] = np.asarray(indices)[frames].tolist()
    own = {name: getattr(clip, name)[frames] for name in ("frames", "times_s", "valid")}
    return replace(clip, **{**own, "metadata": metadata, **changes})
