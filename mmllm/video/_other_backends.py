"""decord and torchcodec, each in a child process with a deadline. If they hang, leak or crash, the caller goes on.

PyAV opens the file first, checks it, and finds all frames and their times. The child process only decodes pixels. Its
frames are matched with PyAV's by number. If both do not count the same number of frames, the video is refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmllm.errors import EXTRAS, MissingExtra, is_installed
from mmllm.video._child import Child
from mmllm.video._open_options import OpenOptions
from mmllm.video._pyav import PyAVReader
from mmllm.video._reader import VideoReader
from mmllm.video._sources import MediaFile
from mmllm.video.audio import Sound, SoundOptions
from mmllm.video.errors import VideoDecodeError, VideoOpenError
from mmllm.video.info import VideoInfo

WORKER = (sys.executable, "-m", "mmllm.video._backend_worker")
_CODECS_WITHOUT_DECORD = ("av1", "vvc")


class ChildReader(VideoReader):
    """Reads a file with decord or torchcodec."""

    def __init__(self, media: MediaFile, options: OpenOptions, backend: str, command: Sequence[str] = WORKER) -> None:
        if command == WORKER and not is_installed(backend):
            library = f"'mmllm[{backend}]'" if backend in EXTRAS else backend
            raise MissingExtra(f"backend {backend!r} is not installed: pip install {library}, or use backend='pyav'")
        self._backend, self._command, self.limits = backend, command, options.limits
        self._child: Child | None = None
        self._temporary: str | None = None
        self._changes_checked = False
        self._reference = PyAVReader(media, options)
        try:
            self._reference_info = self._reference.info
            self._check()
            self._path = media.path or self._temporary_copy(media)
        except BaseException:
            self.close()
            raise
        self._reference.close()

    def sound(
        self, options: SoundOptions | None = None, *, start_s: float | None = None, end_s: float | None = None
    ) -> Sound | None:
        return self._reference.sound(options, start_s=start_s, end_s=end_s)  # only pictures are the child's work

    def _check(self) -> None:
        info, backend = self._reference_info, self._backend
        if backend == "decord" and info.codec in _CODECS_WITHOUT_DECORD:
            raise VideoOpenError(f"{info.source}: decord has no decoder for {info.codec}; use backend='pyav'")
        if self._reference.clock_repaired:
            raise VideoOpenError(
                f"{info.source}: its clock falls back, jumps or repeats itself, and {self._backend} sorts frames "
                "by it; use backend='pyav'"
            )
        if info.mirrored:
            raise VideoOpenError(
                f"{info.source}: its frames must be mirrored, which {backend} does not do; use backend='pyav'"
            )
        if info.deinterlaced:
            raise VideoOpenError(
                f"{info.source}: its frames are interlaced, and {backend} does not de-interlace; use backend='pyav', "
                "or deinterlace=False"
            )
        if info.transparent:
            raise VideoOpenError(f"{info.source}: {backend} drops its transparency; use backend='pyav'")

    def _temporary_copy(self, media: MediaFile) -> str:
        """The path of a temporary copy, for a source that is not a file."""
        descriptor, self._temporary = tempfile.mkstemp(prefix="mmllm-")
        with os.fdopen(descriptor, "wb") as file:
            stream = media.stream()
            while block := stream.read(1 << 20):
                file.write(block)
        return self._temporary

    @property
    def info(self) -> VideoInfo:
        return replace(self._reference_info, backend=self._backend)

    @property
    def times_s(self) -> np.ndarray:
        return self._reference.times_s

    def decode(self, indices: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        if len(indices) == 0:
            return
        self._check_changes()
        self.renew_deadline()
        child = self._running()
        complete = False
        try:
            child.send({**self._request(size), "indices": indices.tolist()})
            frame_count = int(self._answer(child)[0]["count"])
            if frame_count != len(self.times_s):
                raise VideoDecodeError(
                    f"{self.info.source}: {self._backend} counts {frame_count} frames, but PyAV counts "
                    f"{len(self.times_s)}; use backend='pyav'"
                )
            for index in indices.tolist():
                yield index, self._picture(child, size)
            complete = True
        finally:
            if not complete:
                self._end()

    def _check_changes(self) -> None:
        """Refuses a stream whose key frames change in shape or fields, which neither library heeds. Looks once."""
        if not self._changes_checked and (change := self._reference.change()):
            raise VideoDecodeError(f"{self.info.source}: {change}, which {self._backend} ignores; use backend='pyav'")
        self._changes_checked = True

    def _request(self, size: tuple[int, int] | None) -> dict[str, Any]:
        """What the child process must know apart from the indices."""
        info = self._reference_info
        if size is None and info.pixel_aspect != (1, 1):
            size = info.height, info.width  # both libraries take pixels for square
        return {
            "backend": self._backend,
            "path": self._path,
            "stream": info.stream,
            "size": size,
            "untagged_hd": info.matrix == "BT.709" and info.matrix_assumed,
        }

    def _picture(self, child: Child, size: tuple[int, int] | None) -> np.ndarray:
        header, data = self._answer(child)
        height, width = size or (self.info.height, self.info.width)
        if header.get("shape") != [height, width, 3] or len(data) != height * width * 3:
            raise VideoDecodeError(
                f"{self.info.source}: {self._backend} returns frames of shape {header.get('shape')}, "
                f"not {[height, width, 3]}; use backend='pyav'"
            )
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)

    def _answer(self, child: Child) -> tuple[dict[str, Any], bytearray]:
        header, data = child.receive(self._until)
        if "error" in header:
            raise VideoDecodeError(f"{self.info.source}: {self._backend}: {header['error']}; use backend='pyav'")
        return header, data

    def renew_deadline(self) -> None:
        self._until = time.monotonic() + self.limits.child_s

    def _running(self) -> Child:
        if self._child is None:
            self._child = Child(self._command, f"{self.info.source}: {self._backend}")
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None

    def close(self) -> None:
        self._end()
        self._reference.close()
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
        self._temporary = None
