"""Times as plain text: an answer has `<12.3> <30.0>` in ordinary tokens of the LLM.

LITA is compared with this format (arXiv 2403.19046, Table 3, "no time tokens"). The LLM gets no times of the frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.fields import require
from mmllm.interfaces import TimeFormat
from mmllm.registry import register
from mmllm.times.stamps import checked_duration, replace_stamps


@dataclass(frozen=True, kw_only=True)
class TextTimesConfig:
    """How seconds are written."""

    decimals: int = 1
    """Digits after the point. The number is fixed, so that equal times are equal texts."""

    def __post_init__(self) -> None:
        require(0 <= self.decimals <= 3, self, "decimals", "from 0 to 3")


@register("time", "text", config=TextTimesConfig)
class TextTimes(TimeFormat):
    """Seconds as text, in questions and answers."""

    def __init__(self, config: TextTimesConfig) -> None:
        self.config = config

    def seconds(self, time_s: float) -> str:
        """Seconds as digits."""
        return f"{time_s:.{self.config.decimals}f}"

    def write(self, text: str, duration_s: float) -> str:
        """`text` with the seconds of each stamp rounded, and clipped to the video."""
        longest = checked_duration(duration_s)
        return replace_stamps(text, lambda time_s: f"<{self.seconds(min(time_s, longest))}>")

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with the seconds of each stamp put into the template."""
        return replace_stamps(text, lambda time_s: template.format(self.seconds(time_s)))
