"""Reading uploads in a child process, so that neither their memory nor a crash of FFmpeg reaches the demo."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.fields import to_mapping
from mmllm.preprocessing.frames import FrameTransform
from mmllm.tokens import VideoClip
from mmllm.video import errors
from mmllm.video._child import Child
from mmllm.video.audio import SoundOptions
from mmllm.video.errors import LimitExceeded, VideoDecodeError, VideoError, VideoTimeout
from mmllm.video.limits import VideoLimits
from mmllm.video.sampling import UNIFORM, FrameRule

WORKER = (sys.executable, "-m", "mmllm.app._reading_worker")
START_S = 120.0
"""Seconds by the clock for the start of the child process."""


class ConfinedReading:
    """Reads videos in one child process, one after another. A child that crashes or takes too long is replaced."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self.command = command
        self._lock = threading.Lock()
        self._child: Child | None = None
        # a child ends with the thread that started it, so one thread that stays starts them all
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="mmllm-reading")

    def read(
        self,
        path: Path,
        num_frames: int,
        transform: FrameTransform,
        limits: VideoLimits,
        rule: FrameRule = UNIFORM,
        sound: SoundOptions | None = None,
    ) -> VideoClip:
        """Frames of a video, chosen by a rule and brought to the encoder's size; its codec is in the metadata.

        Args:
            path: the file.
            num_frames: how many frames.
            transform: what brings a frame to the encoder's size.
            limits: of the file; `child_s` limits the seconds of the child.
            rule: how frames are chosen.
            sound: which sound is read beside the frames; None for none.

        Raises:
            VideoError: if the file cannot be read, takes too long, needs too much memory or crashes the decoder.
        """
        request = {
            "path": str(path),
            "num_frames": num_frames,
            "transform": to_mapping(transform),
            "limits": to_mapping(limits),
            "rule": to_mapping(rule),
            "sound": None if sound is None else to_mapping(sound),
        }
        if sys.platform == "win32":  # pipes cannot be waited for there
            from mmllm.app._reading_worker import read_clip

            return read_clip(**request)
        with self._lock:
            child = self._running()
            try:
                child.send(request)
                header, data = child.receive(time.monotonic() + limits.child_s)
            except VideoTimeout:
                self._end()
                raise VideoTimeout(f"{path}: stopped, because it takes longer than {limits.child_s:g} s") from None
            except VideoDecodeError:
                self._end()
                raise VideoDecodeError(f"{path}: this file crashes the decoder or needs too much memory") from None
            if header.get("error") == "MemoryError":
                self._end()
        return _clip(path, header, data)

    def close(self) -> None:
        """Ends the child and the thread that started it."""
        with self._lock:
            self._end()
        self._starter.shutdown(wait=False)

    def _running(self) -> Child:
        if self._child is None:
            self._child = self._starter.submit(self._started).result()
        return self._child

    def _started(self) -> Child:
        child = Child(self.command, "the process that reads uploads")
        child.receive(time.monotonic() + START_S)
        return child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None


def _clip(path: Path, header: dict[str, Any], data: bytearray) -> VideoClip:
    """The clip of an answer, which is checked like anything that comes from outside."""
    if "error" in header:
        kind, message = str(header["error"]), str(header.get("message"))
        if kind == "MemoryError":
            raise LimitExceeded(f"{path}: reading this file needs too much memory")
        error = getattr(errors, kind, None)
        if isinstance(error, type) and issubclass(error, VideoError):
            raise error(message)
        raise VideoDecodeError(f"{path}: {kind}: {message}")
    try:
        samples = int(header["samples"])
        pixels = memoryview(data)[: len(data) - 4 * samples]
        sound = np.frombuffer(bytes(data[len(pixels) :]), dtype=np.float32)
        return VideoClip(
            frames=np.frombuffer(bytes(pixels), dtype=np.uint8).reshape(header["shape"]),
            waveform=sound if samples else None,
            waveform_start_s=float(header["waveform_start_s"]),
            times_s=np.array(header["times_s"], dtype=np.float64),
            duration_s=float(header["duration_s"]),
            valid=np.array(header["valid"], dtype=bool),
            source=str(header["source"]),
            metadata=dict(header["metadata"]),
            original_size=_size(header["original_size"]),
        )
    except (LookupError, TypeError, ValueError):
        raise VideoDecodeError(f"{path}: the process that reads it sent no clip") from None


def _size(pair: Any) -> tuple[int, int]:
    """Height and width, both at least 1.

    Raises:
        ValueError: if they are anything else.
    """
    height, width = (int(side) for side in pair)
    if min(height, width) < 1:
        raise ValueError(f"a size of {height}x{width} pixels")
    return height, width


SHARED = ConfinedReading()
"""The child process of this process; it starts with the first video."""
