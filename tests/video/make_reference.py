"""Writes tests/data/video_reference.json: what a plain PyAV decode of every shared clip shows, frame after frame.

    python tests/video/make_reference.py ../shared/data/videos

For each clip that has frames: their number, and of the first, middle and last one the time and the colours, as the
mean of each cell of an 4 x 4 grid, rotation and mirror applied by ffmpeg's own rules. It uses nothing of mmllm.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import av
import numpy as np

TARGET = Path(__file__).resolve().parents[1] / "data" / "video_reference.json"


def decoded(path: Path):
    """Every frame of the best video stream; packets that cannot be decoded are passed over."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if stream is None:
            return
        stream.codec_context.thread_type = "NONE"  # with several slices at once, H.264 does not conceal damage
        for other in container.streams:
            if other is not stream and hasattr(av.stream, "Discard"):  # PyAV 15 has none
                other.discard = av.stream.Discard.all
        for packet in container.demux(stream):
            try:
                frames = stream.codec_context.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                continue
            yield from frames


def upright(frame) -> np.ndarray:
    """RGB as `ffmpeg -autorotate` shows it; of 720 rows or more, frames without a matrix are BT.709."""
    untagged_hd = int(frame.colorspace) == 2 and frame.height >= 720 and not frame.format.is_rgb
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=1 if untagged_hd else None)
    matrix = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not matrix or abs(frame.rotation) > 180:
        return pixels
    m = struct.unpack("=9i", matrix[0][:36])
    angle = -frame.rotation % 360
    if angle == 90:
        pixels = np.rot90(pixels, -1) if m[3] <= 0 else np.rot90(pixels[::-1], -1)
    elif angle == 180:
        pixels = pixels[:: -1 if m[4] < 0 else 1, :: -1 if m[0] < 0 else 1]
    elif angle == 270:
        pixels = np.rot90(pixels, 1) if m[3] >= 0 else np.rot90(pixels[::-1], 1)
    elif m[4] < 0:
        pixels = pixels[::-1]
    return pixels


def cells(pixels: np.ndarray) -> list[float]:
    """Mean colours of the cells of a 4 x 4 grid, row by row, red green blue."""
    rows = [np.array_split(row, 4, axis=1) for row in np.array_split(pixels, 4, axis=0)]
    return [round(float(value), 1) for row in rows for cell in row for value in cell.reshape(-1, 3).mean(axis=0)]


def reference(path: Path) -> dict | None:
    """What the file says of one clip, None if it has no frame."""
    pts = [frame.pts for frame in decoded(path)]
    if not pts:
        return None
    time_base = None
    sampled = sorted({0, len(pts) // 2, len(pts) - 1})
    pictures = []
    for number, frame in enumerate(decoded(path)):
        if number in sampled:
            time_base = frame.time_base
            picture = upright(frame)
            pictures.append({
                "index": number,
                "height": picture.shape[0],
                "width": picture.shape[1],
                "cells": cells(picture),
            })  # fmt: skip
    if None in pts:
        times_s = [None] * len(pts)
    else:  # the k-th frame shown is shown at the k-th time
        times_s = [float((value - min(pts)) * time_base) for value in sorted(pts)]
    for entry in pictures:
        entry["time_s"] = times_s[entry["index"]]
    return {"frames": len(pts), "pictures": pictures}


if __name__ == "__main__":
    table = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        if path.suffix == ".md":
            continue
        try:
            table[path.name] = reference(path)
        except av.error.FFmpegError:
            table[path.name] = None
        print(path.name, table[path.name] and table[path.name]["frames"], flush=True)
    TARGET.write_text(json.dumps(table, separators=(",", ":")) + "\n")
