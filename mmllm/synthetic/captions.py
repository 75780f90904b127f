"""Captions of real clips, a JSON list: what is in sight in each, from when to when.

A caption is an object: `{"video": "cockatoo.mp4", "shows": ["cockatoo", "white parrot"], "unsure": ["bird"], "start":
0, "end": 13.9}`. Everything in `shows` must be in sight from `start` to `end` (seconds; by default the whole video);
`unsure` names what could be taken for something in the clip, so that nobody asks for it beside this clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.video.errors import VideoError
from mmllm.video.opening import open_video

_KEYS = ("video", "shows", "unsure", "start", "end")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a part of a video shows."""

    path: Path
    start_s: float
    end_s: float
    shows: tuple[str, ...]
    unsure: frozenset[str]
    """What could be taken for something that is there."""


def read_captions(file: Path, videos: Path) -> list[Caption]:
    """The captions of a JSON list.

    Args:
        file: see the top of this file.
        videos: the folder that `video` is relative to.

    Raises:
        InputError: if the file or a row is damaged, or a video is missing, cannot be read or ends before its caption.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"{file}: cannot be read: {problem}") from None
    if not isinstance(rows, list):
        raise InputError(f"{file}: captions are a list of objects with {', '.join(_KEYS)}")
    captions = []
    for number, row in enumerate(rows, start=1):
        try:
            captions.append(_caption(row, videos))
        except InputError as problem:
            raise InputError(f"{file}, caption {number}: {problem}") from None
    return captions


def _caption(row: Any, videos: Path) -> Caption:
    if not isinstance(row, dict) or not isinstance(row.get("video"), str) or not set(row) <= set(_KEYS):
        raise InputError(f"must be an object with 'video' and 'shows', and no keys but {', '.join(_KEYS)}")
    names = {key: row.get(key, []) for key in ("shows", "unsure")}
    for key, value in names.items():
        if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
            raise InputError(f"{key!r} must be a list of names, not {value!r:.100}")
    if not names["shows"]:
        raise InputError("'shows' must name at least one thing")
    path = videos / row["video"]
    try:
        with open_video(path) as video:
            duration_s = video.info.duration_s
    except VideoError as problem:
        raise InputError(f"{path}: {problem}") from None
    start_s, end_s = row.get("start", 0), row.get("end", duration_s)
    if not all(isinstance(time_s, (int, float)) for time_s in (start_s, end_s)) or not 0 <= start_s < end_s:
        raise InputError(f"'start' and 'end' must be seconds, start < end, not {start_s!r:.40} and {end_s!r:.40}")
    if end_s > duration_s + 0.05:
        raise InputError(f"its end is {end_s} s, but {path} lasts {duration_s:.2f} s")
    return Caption(
        path=path,
        start_s=float(start_s),
        end_s=float(min(end_s, duration_s)),
        shows=tuple(name.strip().lower() for name in names["shows"]),
        unsure=frozenset(name.strip().lower() for name in names["unsure"]),
    )
