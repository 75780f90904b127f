"""What is remembered of a stream, and the answers that it gives; the sliding window is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mmllm.inference.asking import VideoAnswering
from mmllm.inference.kept_prefix import grouped
from mmllm.times.answers import Answer, Span
from mmllm.watch.config import WatchConfig
from mmllm.watch.recent_frames import RecentFrames

_HELD_S = 1.0
"""For so long the newest frame stands still at the end of what is shown, unless that is an eighth of all frames."""


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

    def leave_out(self, question: str, until_s: float) -> None:
        """Notes that all that happened until then has been reported to those who ask a question."""


class SlidingWindow:
    """The last seconds of a stream as a video of their own, about which a model is asked as about any video.

    Two things differ from such a video. What a question's reports have named is not shown again when it is asked:
    models like to name what is over, and not what goes on. And the newest frame stands still for a second at the end:
    models see an end only when something comes behind it.

    Args:
        qa: the model.
        config: how long the window is.
    """

    def __init__(self, qa: VideoAnswering, config: WatchConfig) -> None:
        self.qa = qa
        count = config.frames(qa.processor.num_frames)
        self.recent = RecentFrames(qa, count, config.rate, held=min(round(_HELD_S * config.rate), count // 8))
        self._fewest = max(2, min(16, count // 2))
        self._newest_s = 0.0
        self._over_s: dict[str, float] = {}
        """Question -> until when everything has been reported."""

    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Takes the next frame (uint8, H W 3)."""
        self.recent.add(pixels, time_s)
        self._newest_s = time_s

    def clear(self) -> None:
        """Forgets all frames, and what was reported of them."""
        self.recent.clear()
        self._over_s.clear()

    @property
    def seen(self) -> Span | None:
        """The window; None if it is too short to be asked about."""
        return None if len(self.recent) < self._fewest else Span(self.recent.start_s, self._newest_s)

    def leave_out(self, question: str, until_s: float) -> None:
        """Shows frames from before `until_s` no more when this question is asked."""
        self._over_s[question] = max(until_s, self._over_s.get(question, until_s))

    def ask(self, questions: Sequence[str]) -> list[Answer]:
        """Answers with spans in seconds of the stream; those without a time have none."""
        start_s = self.recent.start_s
        since_s = [max(start_s, self._over_s.get(question, start_s)) for question in questions]
        answers: dict[int, Answer] = {}
        for numbers in grouped(since_s):
            video = self.recent.video(since_s[numbers[0]])
            answers |= zip(numbers, self.qa.ask_all(video, [questions[number] for number in numbers]), strict=True)
        return [moved(answers[number], start_s) for number in range(len(questions))]


def moved(answer: Answer, start_s: float) -> Answer:
    """An answer about a part of a stream that begins at `start_s`, with times of the stream; none if it has none."""
    spans = () if answer.fallback else answer.spans
    shifted = tuple(Span(span.start_s + start_s, span.end_s + start_s) for span in spans)
    return Answer(text=answer.text, spans=shifted, raw=answer.raw, fallback=answer.fallback)
