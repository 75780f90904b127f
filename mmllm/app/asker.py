"""Whoever waits for a video or for the answer of a question, and may leave before it comes."""

from __future__ import annotations

import threading

LOOK_S = 0.1
"""Every so many seconds, what waits on somebody's behalf looks whether that one is still there."""


class NobodyWaits(Exception):
    """Whoever asked has left."""


class Asker:
    """One that asks.

    Args:
        gone: set when it has left; by default it stays.
    """

    def __init__(self, gone: threading.Event | None = None) -> None:
        self.gone = gone or threading.Event()

    def require(self) -> None:
        """Ends what is done for one that has left.

        Raises:
            NobodyWaits: if it has.
        """
        if self.gone.is_set():
            raise NobodyWaits
