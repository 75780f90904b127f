"""`mmllm info`: what video files hold, each opened by its content and under a deadline."""

from __future__ import annotations

import dataclasses
import json as json_text
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.errors import InputError
from mmllm.video.opening import UPLOAD_LIMITS, VideoInfo, VideoTruncated, open_video


def info(
    videos: Annotated[tuple[Path, ...], tyro.conf.Positional], json: bool = False, fps: float | None = None
) -> int:
    """Say what video files hold: length, frames, rate, size, coding, and what is wrong with those that fail.

    Every packet is read and the first frame decoded, so what is told is what is there, not what the header claims.
    Exit code 2 if any file failed.

    Args:
        videos: files, or folders of numbered images.
        json: one JSON object a line for each file: `path`, `ok`, then the facts, or `error` with `type` and `message`.
        fps: images a second, for folders.
    """
    if not videos:
        raise InputError("name at least one video: mmllm info clip.mp4")
    failed = False
    for path in videos:
        row = _row(path, fps if path.is_dir() else None)
        failed |= not row["ok"]
        text = json_text.dumps(row) if json else _lines(row)
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    return 2 if failed else 0


def _row(path: Path, fps: float | None) -> dict[str, Any]:
    """One file's JSON object."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", VideoTruncated)
        try:
            with open_video(path, fps=fps, limits=UPLOAD_LIMITS) as video:
                facts = {**dataclasses.asdict(video.info), **video.damage()}
        except InputError as problem:
            return {"path": str(path), "ok": False, "error": {"type": type(problem).__name__, "message": str(problem)}}
    facts.pop("source")
    return {"path": str(path), "ok": True, **facts, "warnings": [str(warning.message) for warning in told]}


def _lines(row: dict[str, Any]) -> str:
    """The same for people."""
    if not row["ok"]:
        return f"{row['path']}\n  {row['error']['type']}: {row['error']['message']}"
    known = {field.name for field in dataclasses.fields(VideoInfo)}
    times = "variable" if row["variable_rate"] else "steady"
    if row["time_estimated"]:
        times = "no usable timestamps; times follow from the order"
    lines = [
        f"{row['duration_s']:.3f} s, {row['num_frames']} frames, {row['average_fps']:.3f} a second ({times})",
        f"{row['width']} x {row['height']}, {row['codec']} in {row['container']}, {row['pixel_format']}",
        f"stream {row['stream']} of: {'; '.join(row['streams'])}",
    ]
    if row["start_s"]:
        lines.append(f"first frame at {row['start_s']:.3f} s of the file, which is counted as 0")
    if row["rotation"] or row["mirrored"]:
        lines.append(f"frames are turned by {row['rotation']} degrees{' and mirrored' if row['mirrored'] else ''}")
    if row["hdr"]:
        lines.append("HDR")
    lines += [f"{name}: {value}" for name, value in row.items() if name not in {*known, "path", "ok", "warnings"}]
    return "\n  ".join([row["path"], *lines, *row["warnings"]])
