"""Several processes that open files, so that one long video does not hold up all others."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.app.confined_reading import ConfinedReading
from mmllm.tokens import VideoClip
from mmllm.video.limits import VideoLimits


class ReadingPool:
    """Reads as `ConfinedReading` does, with so many files at once; several threads may use it."""

    def __init__(self, count: int) -> None:
        self._readings = [ConfinedReading() for _ in range(count)]
        self._free: queue.LifoQueue[ConfinedReading] = queue.LifoQueue()  # the last one is warm
        for reading in self._readings:
            self._free.put(reading)

    def read(self, path: Path, num_frames: int, *arguments: Any, **options: Any) -> VideoClip:
        """Frames of a video; see `ConfinedReading.read`."""
        with self._lent() as reading:
            return reading.read(path, num_frames, *arguments, **options)

    def picture(self, path: Path, limits: VideoLimits) -> np.ndarray:
        """A still image; see `ConfinedReading.picture`."""
        with self._lent() as reading:
            return reading.picture(path, limits)

    def close(self) -> None:
        """Ends all processes, also those that read; whoever waits for them gets an error."""
        for reading in self._readings:
            reading.interrupt()
            reading.close()

    @contextmanager
    def _lent(self) -> Iterator[ConfinedReading]:
        reading = self._free.get()
        try:
            yield reading
        finally:
            self._free.put(reading)
