"""Several processes that open files, so that one long video does not hold up all others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.app.asker import LOOK_S, Asker
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

    def asked_by(self, asker: Asker) -> PoolReading:
        """The pool as somebody uses it: when that one leaves, reading ends."""
        return PoolReading(self, asker)

    def close(self) -> None:
        """Ends all processes, also those that read; whoever waits for them gets an error."""
        for reading in self._readings:
            reading.interrupt()
            reading.close()

    @contextmanager
    def lent(self, asker: Asker) -> Iterator[ConfinedReading]:
        """A process of one's own for a file. It is killed if the asker leaves meanwhile.

        Raises:
            NobodyWaits: if the asker has left already.
        """
        asker.require()
        reading = self._free.get()
        read = threading.Event()
        guard = threading.Thread(target=_interrupt, args=(reading, asker, read), daemon=True)
        guard.start()
        try:
            yield reading
        finally:
            read.set()
            guard.join()
            if asker.gone.is_set():  # the process may have been killed after it had answered
                reading.renew()
            self._free.put(reading)


class PoolReading:
    """A pool on somebody's behalf; see `ReadingPool.asked_by`."""

    def __init__(self, pool: ReadingPool, asker: Asker) -> None:
        self._pool, self._asker = pool, asker

    def read(self, path: Path, num_frames: int, *arguments: Any, **options: Any) -> VideoClip:
        """Frames of a video; see `ConfinedReading.read`."""
        with self._pool.lent(self._asker) as reading:
            return reading.read(path, num_frames, *arguments, **options)

    def picture(self, path: Path, limits: VideoLimits) -> np.ndarray:
        """A still image; see `ConfinedReading.picture`."""
        with self._pool.lent(self._asker) as reading:
            return reading.picture(path, limits)


def _interrupt(reading: ConfinedReading, asker: Asker, read: threading.Event) -> None:
    """Ends a reading if nobody waits for it any more."""
    while not read.wait(LOOK_S):
        if asker.gone.is_set():
            reading.interrupt()  # again and again: a process that is just starting is not there yet
