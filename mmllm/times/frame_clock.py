"""When the frames are shown that a model takes for evenly spaced: time tokens name a share of what it was shown.

A model with time tokens is told no times. It takes its frames for the whole video, evenly spaced from 0 on, as those of
its training were. A picture that begins late, a varying rate, a part of a video: then its shares are others.

T frames
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmllm.times.answers import Answer, Span
from mmllm.times.stamps import replace_stamps, stamp
from mmllm.tokens import VideoClip


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameClock:
    """From the seconds that a model means to those of the video, and back."""

    even_s: np.ndarray
    """float64, T + 1, ascending. When the model takes each frame to be shown, and when it takes the video to end."""
    shown_s: np.ndarray
    """float64, T + 1, ascending. When they are."""

    def seconds(self, even_s: float) -> float:
        """The video's seconds for seconds that the model means."""
        return float(np.interp(even_s, self.even_s, self.shown_s))

    def question(self, text: str) -> str:
        """A question with its stamps in seconds that the model means."""
        return replace_stamps(text, lambda time_s: stamp(round(self._even(time_s), 3)))

    def questions(self, texts: Sequence[str]) -> list[str]:
        """As `question`, of several."""
        return [self.question(text) for text in texts]

    def history(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Earlier questions so written; their raw answers have the model's times already."""
        return [(self.question(asked), said) for asked, said in pairs]

    def answer(self, answer: Answer) -> Answer:
        """An answer whose times are those that the model means, in seconds of the video; `raw` stays as it is."""
        spans = tuple(Span(self.seconds(span.start_s), self.seconds(span.end_s)) for span in answer.spans)
        text = self.text(answer.text)
        return dataclasses.replace(answer, text=text, spans=answer.spans if answer.fallback else spans)

    def text(self, text: str, template: str = "<{}>") -> str:
        """A text whose stamps are times that the model means, with the video's seconds put into the template."""
        return replace_stamps(text, lambda time_s: template.format(stamp(round(self.seconds(time_s), 2))[1:-1]))

    def _even(self, time_s: float) -> float:
        return float(np.interp(time_s, self.shown_s, self.even_s))


def frame_clock(
    times_s: np.ndarray, duration_s: float, *, frames: int, ends_s: float, token_duration_s: float
) -> FrameClock | None:
    """The clock of a video whose frames are not where a model takes them to be; None if they are, to one frame.

    Args:
        times_s: float64, T, ascending. When each frame is shown.
        duration_s: length of the video.
        frames: how many frames of the video there are from the first to the last of these.
        ends_s: when the last of these frames ends.
        token_duration_s: the length to which time tokens are relative; benchmarks annotate one of their own.
    """
    distinct = len(np.unique(times_s))
    if distinct < 2:
        return None
    share = np.linspace(0, 1 - 1 / max(frames, distinct), len(times_s))
    step_s = float(times_s[-1] - times_s[0]) / (distinct - 1)
    errors_s = np.abs(np.append(times_s, ends_s) - np.append(share, 1) * duration_s)
    if errors_s.max() <= step_s + 1e-6:
        return None
    shown_s = np.append(times_s, max(ends_s, float(times_s[-1])))
    return FrameClock(even_s=np.append(share, 1) * token_duration_s, shown_s=shown_s)


def clock_of_clip(clip: VideoClip, times_s: np.ndarray, token_duration_s: float) -> FrameClock | None:
    """The clock of a clip, whose metadata say which frames of its file it has.

    Args:
        clip: what was read.
        times_s: float64, T. When each frame is shown; more than the clip has, if that is a choice of them.
        token_duration_s: the length to which time tokens are relative.
    """
    if len(times_s) < 2:
        return None
    indices = clip.metadata.get("indices") or (0,)
    frames = max(int(indices[-1] - indices[0]) + 1, len(np.unique(times_s)))
    gap_s = float(times_s[-1] - times_s[0]) / max(frames - 1, 1)
    ends_s = float(times_s[-1]) + gap_s
    is_last = clip.duration_s - ends_s <= gap_s
    return frame_clock(
        times_s,
        clip.duration_s,
        frames=frames,
        ends_s=clip.duration_s if is_last else ends_s,
        token_duration_s=token_duration_s,
    )
