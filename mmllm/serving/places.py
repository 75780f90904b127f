"""So many questions are prepared at once. One that waits for a file or for another question leaves its place meanwhile.

decoded  |####......waits for a decoder......####|
kept            |##|                                  is not held up
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from mmllm.app.asker import Asker


class Preparation(Asker):
    """A question that is being prepared; it has a place within a `with` statement.

    Args:
        gone: set when its client has left.
        places: how many there are.
    """

    def __init__(self, gone: threading.Event, places: threading.Semaphore) -> None:
        super().__init__(gone)
        self._places = places

    def __enter__(self) -> Self:
        self._places.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._places.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this block, another question has the place."""
        self._places.release()
        try:
            yield
        finally:
            self._places.acquire()
