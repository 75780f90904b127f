"""Reading uploads in a child process, so that neither their memory nor a crash of FFmpeg reaches this one."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.fields import to_mapping
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.tokens import VideoClip
from mmllm.video import errors
from mmllm.video._child import Child
from mmllm.video.audio import SoundOptions
from mmllm.video.errors import LimitExceeded, VideoDecodeError, VideoError, VideoTimeout
from mmllm.video.limits import VideoLimits
from mmllm.video.opening import FrameSink
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
        transform: FrameTransform | WholeFrames,
        limits: VideoLimits,
        sink: FrameSink | None = None,
        sound: SoundOptions | None = None,
        rule: FrameRule = UNIFORM,
        *,
        fps: float | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> VideoClip:
        """Frames of a video, chosen by a rule and brought to the encoder's size; its codec is in the metadata.

        Args:
            path: the file.
            num_frames: how many frames.
            transform: what brings a frame to the encoder's size; `WholeFrames` lets frames of any shape come.
            limits: of the file; `child_s` limits the seconds of the child, for each piece that a sink takes.
            sink: takes the frames as they come, if it wants them; the clip then has frames (T 0 0 3).
            sound: which sound is read beside the frames; None for none.
            rule: how frames are chosen.
            fps: frames a second in place of a rule; `num_frames` is then how many they may be.
            start_s, end_s: the part that is looked at, in seconds.

        Raises:
            VideoError: if the file cannot be read, takes too long, needs too much memory or crashes the decoder.
            InputError: if the rate gives more frames, or the part is empty.
        """
        request = {
            "path": str(path),
            "num_frames": num_frames,
            "transform": to_mapping(transform),
            "limits": to_mapping(limits),
            "sound": None if sound is None else to_mapping(sound),
            "rule": to_mapping(rule),
            "fps": fps,
            "start_s": start_s,
            "end_s": end_s,
        }
        if sys.platform == "win32":  # pipes cannot be waited for there
            from mmllm.app._reading_worker import read_clip

            return read_clip(**request, sink=sink)
        side = None if isinstance(transform, WholeFrames) else transform.size
        return self._answer(request, _Frames(path, num_frames, side, limits, sink))

    def picture(self, path: Path, limits: VideoLimits) -> np.ndarray:
        """uint8, H W 3: a still image.

        Raises:
            VideoError, InputError: if it cannot be read, or is too large.
        """
        request = {"path": str(path), "limits": to_mapping(limits)}
        frames = _Frames(path, 1, None, limits, None)
        if sys.platform == "win32":
            from mmllm.app._reading_worker import read_picture

            collected = _Collecting()
            read_picture(**request, sink=collected)
            return collected.frame
        return self._answer({**request, "still": True}, frames).frames[0]

    def _answer(self, request: dict[str, Any], frames: _Frames) -> VideoClip:
        """The clip that the child sends for a request."""
        path, limits = frames.path, frames.limits
        with self._lock:
            child = self._running()
            complete = False
            try:
                child.send(request)
                while frames.takes(*(answer := child.receive(frames.until))):
                    pass
                header, complete = answer[0], True
            except VideoTimeout:
                raise VideoTimeout(f"{path}: stopped, because it takes longer than {limits.child_s:g} s") from None
            except _NoClip:
                raise VideoDecodeError(f"{path}: the process that reads it sent no clip") from None
            except VideoDecodeError:
                raise VideoDecodeError(f"{path}: this file crashes the decoder or needs too much memory") from None
            finally:
                if not complete:  # also if the sink failed, or the demo is ended
                    self._end()
            if header.get("error") == "MemoryError":
                self._end()
        return _clip(path, header, frames, answer[1])

    def interrupt(self) -> None:
        """Ends the child while it reads: the file that is being read counts as one that crashes the decoder."""
        if (child := self._child) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def renew(self) -> None:
        """Ends the child, such as one that was interrupted; the next file is read by another."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """Ends the child and the thread that started it."""
        self.renew()
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


class _Collecting:
    """A sink that keeps one frame."""

    frame: np.ndarray

    def takes(self, count: int) -> bool:
        """The frame."""
        return True

    def put(self, frame: np.ndarray) -> bool:
        """Keeps it."""
        self.frame = frame
        return False


class _NoClip(Exception):
    """The child sent something else than a clip."""


class _Frames:
    """The frames that come from the child: given to a sink, or collected if it does not want them."""

    def __init__(
        self, path: Path, num_frames: int, side: int | None, limits: VideoLimits, sink: FrameSink | None
    ) -> None:
        self.path, self.most, self.limits, self.sink = path, num_frames, limits, sink
        self.own_shape = None if side is None else (side, side, 3)
        self.shape = self.own_shape or (0, 0, 3)
        self.count, self.received, self.poured = 0, 0, False
        self.collected = np.empty((0, *self.shape), dtype=np.uint8)
        self._renew()

    def _renew(self) -> None:
        self.until = time.monotonic() + self.limits.child_s

    def takes(self, header: dict[str, Any], data: bytearray) -> bool:
        """Takes the number of frames, or a frame; False for any other answer, which is the last."""
        if "count" in header:
            self._start(header["count"])
            return True
        if "frame" not in header:
            return False
        if self.received == 0 and self.own_shape is None:
            self._shape_from(header["frame"])
        if header["frame"] != list(self.shape) or len(data) != math.prod(self.shape) or self.received >= self.count:
            raise _NoClip
        frame = np.frombuffer(bytes(data), dtype=np.uint8).reshape(self.shape)
        self.received += 1
        if not self.poured:
            self.collected[self.received - 1] = frame
        elif self.sink is not None and self.sink.put(frame):
            self._renew()
        return True

    def _shape_from(self, shape: Any) -> None:
        """The shape of all frames, by the first one: it is not known before if frames come as they are decoded."""
        sides = (
            isinstance(shape, list) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)
        )
        if not sides or shape[2] != 3:
            raise _NoClip
        self.shape = (shape[0], shape[1], 3)
        if not self.poured:
            self.limits.check_returned(str(self.path), self.count, *self.shape[:2])
            self.collected = np.empty((self.count, *self.shape), dtype=np.uint8)

    def _start(self, count: Any) -> None:
        if not isinstance(count, int) or not 1 <= count <= self.most:
            raise _NoClip
        self.count, self.received = count, 0
        self.poured = self.sink is not None and self.sink.takes(count)
        if not self.poured:
            self.limits.check_returned(str(self.path), count, *self.shape[:2])
            self.collected = np.empty((count, *self.shape), dtype=np.uint8)
        self._renew()

    @property
    def pixels(self) -> np.ndarray:
        """uint8, T S S 3; T 0 0 3 if a sink has taken them."""
        if self.received != self.count or not self.count:
            raise ValueError(f"{self.received} of {self.count} frames")
        return np.empty((self.count, 0, 0, 3), dtype=np.uint8) if self.poured else self.collected


def _clip(path: Path, header: dict[str, Any], frames: _Frames, sound: bytearray) -> VideoClip:
    """The clip of an answer, which is checked like anything that comes from outside."""
    if "error" in header:
        kind, message = str(header["error"]), str(header.get("message"))
        if kind == "MemoryError":
            raise LimitExceeded(f"{path}: reading this file needs too much memory")
        error = getattr(errors, kind, None)
        if isinstance(error, type) and issubclass(error, VideoError):
            raise error(message)
        if kind == "InputError":
            raise InputError(message)
        raise VideoDecodeError(f"{path}: {kind}: {message}")
    try:
        return VideoClip(
            frames=frames.pixels,
            waveform=np.frombuffer(bytes(sound), dtype=np.float32) if sound else None,
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
