"""`mmllm info`: the contents of video files. The format is detected from the content; a deadline limits each file."""

from __future__ import annotations

import dataclasses
import json as json_text
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.commands.flags import folder_rate
from mmllm.errors import InputError
from mmllm.video.frame_files import FOLDER_FPS, frame_files
from mmllm.video.names import existing
from mmllm.video.opening import (
    ClockBroken,
    FramesMissing,
    VideoInfo,
    VideoLimits,
    VideoTruncated,
    open_video,
)
from mmllm.video.still_images import require_readable


def info(videos: Annotated[tuple[str, ...], tyro.conf.Positional], json: bool = False, fps: float | None = None) -> int:
    """Show what video files contain: length, frames, rate, size, codec; for files that fail, the error.

    Every packet is read and the first frame is decoded, so the facts do not depend on what the header says.
    The exit code is 2 if a file failed.

    Args:
        videos: files, or folders of numbered images.
        json: print one line of JSON for each file: `path`, `ok`, then the facts, or `error` with `type` and `message`.
        fps: images a second in folders; 5 if it is not given.
    """
    if not videos:
        raise InputError("name at least one video: mmllm info clip.mp4")
    folder_rate(videos, fps)
    failed = False
    for path in videos:
        row = _row(str(path), fps)
        failed |= not row["ok"]
        text = json_text.dumps(row) if json else _lines(row)
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
    return 2 if failed else 0


def _row(path: str, fps: float | None) -> dict[str, Any]:
    """The JSON object of one file or folder."""
    is_folder = (existing(path) or Path(path)).is_dir()
    notes = (
        [f"{FOLDER_FPS:g} images a second are assumed; --fps says how many there are"] if is_folder and not fps else []
    )
    with warnings.catch_warnings(record=True) as records:
        for category in (VideoTruncated, FramesMissing, ClockBroken):
            warnings.simplefilter("always", category)
        try:
            with open_video(path, fps=(fps or FOLDER_FPS) if is_folder else None) as video:
                facts = {**dataclasses.asdict(video.info), **video.damage()}
            if is_folder:
                folder = existing(path) or Path(path)
                require_readable(folder, frame_files(folder).files, VideoLimits())
        except InputError as problem:
            return {"path": path, "ok": False, "error": {"type": type(problem).__name__, "message": str(problem)}}
    facts.pop("source")
    return {"path": path, "ok": True, **facts, "warnings": [*(str(record.message) for record in records), *notes]}


def _lines(row: dict[str, Any]) -> str:
    """The facts or the error of one file as text."""
    if not row["ok"]:
        return f"{row['path']}\n  {row['error']['type']}: {row['error']['message']}"
    info_fields = {field.name for field in dataclasses.fields(VideoInfo)}
    times = "variable" if row["variable_rate"] else "steady"
    if row["time_estimated"]:
        times = "not all times of the file can be used; they are estimated from the order"
    lines = [
        f"{row['duration_s']:.3f} s, {row['num_frames']} frames, {row['average_fps']:.3f} a second ({times})",
        f"{row['width']} x {row['height']}, {row['codec']} in {row['container']}, {row['pixel_format']}",
        *_picture_lines(row),
        f"stream {row['stream']} of: {'; '.join(row['streams'])}",
    ]
    if row["audio"]:
        lines.append(f"sound: {'; '.join(row['audio'])}")
    if row["first_frame_s"]:
        lines.append(f"first frame at {row['first_frame_s']:.3f} s, after sound that starts at 0")
    if clock_start_s := round(row["start_s"] - row["first_frame_s"], 6):
        lines.append(f"the file's own times start at {clock_start_s:.3f} s, which players and mmllm count as 0")
    lines += [f"{name}: {value}" for name, value in row.items() if name not in {*info_fields, "path", "ok", "warnings"}]
    return "\n  ".join([row["path"], *lines, *row["warnings"]])


def _picture_lines(row: dict[str, Any]) -> list[str]:
    """How frames are stored, where this differs from how they are shown, and how their colours are computed."""
    lines = []
    if (row["coded_width"], row["coded_height"]) != (row["width"], row["height"]):
        across, down = row["pixel_aspect"]
        pixels = "square pixels" if across == down else f"pixels of {across}:{down}"
        lines.append(f"coded as {row['coded_width']} x {row['coded_height']} with {pixels}")
    if row["rotation"] or row["mirrored"]:
        lines.append(f"frames are turned by {row['rotation']} degrees{' and mirrored' if row['mirrored'] else ''}")
    if row["interlaced"]:
        order = row["field_order"] if row["field_order"].endswith("first") else "field order not stated"
        lines.append(f"interlaced, {order}{'; de-interlaced' if row['deinterlaced'] else ''}")
    elif row["field_order"].endswith("first"):
        lines.append(f"the header says interlaced, {row['field_order']}, but the first frame is progressive")
    if row["matrix"] not in ("RGB", "grey"):
        origin = f", assumed for {row['coded_height']} rows" if row["matrix_assumed"] else ""
        lines.append(f"colours by {row['matrix']}{origin}, {'full' if row['full_range'] else 'limited'} range")
    if row["transparent"]:
        lines.append("transparent pixels are laid on black")
    if row["hdr"]:
        lines.append("HDR")
    return lines
