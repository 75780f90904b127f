"""A thread to which jobs are given: what waits, and its end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from mmllm.serving.jobs import Job


class JobThread(ABC):
    """Keeps jobs until its thread takes them; what the thread does with them is up to the class.

    Args:
        name: of the thread, which starts at once: a class calls this last.
    """

    def __init__(self, name: str) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.thread = threading.Thread(target=self._run, daemon=True, name=name)
        self.thread.start()

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    @property
    @abstractmethod
    def running(self) -> Sequence[Job]:
        """The questions that are being answered."""

    def put(self, job: Job) -> None:
        """Adds a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def drop_waiting(self) -> list[Job]:
        """Takes all waiting jobs away, and tells the running ones to end."""
        with self._changed:
            dropped = list(self._waiting)
            self._waiting.clear()
            for job in self.running:
                job.ending = True
        return dropped

    def close(self) -> None:
        """Lets the thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does until `_closed` is True."""
