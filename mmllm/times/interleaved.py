"""Times as text before each frame: the LLM reads `12.3 s:`, then the frame's tokens, and answers in seconds.

Systems after LITA do this: Qwen3-VL's processor, for example, writes `<12.3 seconds>` before its frames. There is a
time wherever the tokens of another frame begin, that is before every fast token and before each slow frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmllm.fields import require
from mmllm.registry import register
from mmllm.times.text import TextTimes, TextTimesConfig


@dataclass(frozen=True, kw_only=True)
class InterleavedTimesConfig(TextTimesConfig):
    """How seconds are written, in answers and before frames."""

    frame: str = "{} s:"
    """Text before a frame; `{}` is replaced by the seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.frame.count("{}") == 1, self, "frame", "a text with one {}")


@register("time", "interleaved", config=InterleavedTimesConfig)
class InterleavedTimes(TextTimes):
    """Seconds as text, in questions, in answers and before each frame."""

    config: InterleavedTimesConfig

    def before_frames(self, times_s: Sequence[float]) -> list[str]:
        """The text before the tokens of each frame."""
        return [self.config.frame.replace("{}", self.seconds(time_s)) for time_s in times_s]
