"""What is remembered of a stream, and the answers that it gives; the sliding window is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mmllm.inference.asking import VideoAnswering
from mmllm.times.answers import Answer, Span
from mmllm.watch.config import WatchConfig
from mmllm.watch.recent_frames import RecentFrames


class StreamMemory(Protocol):
    """What a watcher needs of a way of remembering."""

    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Takes the next frame (uint8, H W 3)."""

    def clear(self) -> None:
        """Forgets frames that have no connection with those that come."""

    @property
    def seen(self) -> Span | None:
        """The part of the stream that is remembered; None if it is too short to be asked about."""

    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """Answers with spans in seconds of the stream; those without a time have none."""


class SlidingWindow:
    """The last seconds of a stream as a video of their own, about which a model is asked as about any video.

    Args:
        qa: the model.
        config: how long the window is.
    """

    def __init__(self, qa: VideoAnswering, config: WatchConfig) -> None:
        self.qa = qa
        self.recent = RecentFrames(qa, config.frames(qa.processor.num_frames), config.rate)
        self._fewest = max(2, min(16, config.frames(qa.processor.num_frames) // 2))
        self._newest_s = 0.0

    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Takes the next frame (uint8, H W 3)."""
        self.recent.add(pixels, time_s)
        self._newest_s = time_s

    def clear(self) -> None:
        """Forgets all frames."""
        self.recent.clear()

    @property
    def seen(self) -> Span | None:
        """The window; None if it is too short to be asked about."""
        return None if len(self.recent) < self._fewest else Span(self.recent.start_s, self._newest_s)

    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """Answers with spans in seconds of the stream; those without a time have none."""
        return [moved(answer, self.recent.start_s) for answer in self.qa.ask_all(self.recent.video(), questions)]


def moved(answer: Answer, start_s: float) -> Answer:
    """An answer about a part of a stream that begins at `start_s`, with times of the stream; none if it has none."""
    spans = () if answer.fallback else answer.spans
    shifted = tuple(Span(span.start_s + start_s, span.end_s + start_s) for span in spans)
    return Answer(text=answer.text, spans=shifted, raw=answer.raw, fallback=answer.fallback)
