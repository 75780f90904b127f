"""How times are written for the LLM."""

from __future__ import annotations

from collections.abc import Sequence

from mmllm.interfaces.part import Part
from mmllm.times.vocabulary import TimeTokens


class TimeFormat(Part):
    """Writes times for the LLM, and reads them from its answers."""

    time_tokens: TimeTokens | None = None
    """Words with one id each that stand for instants; None without them."""

    def write(self, text: str, duration_s: float) -> str:
        """`text` with each stamp of seconds (`<12.3>`) in the form that the LLM reads."""
        raise NotImplementedError

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time as seconds, written by the template."""
        raise NotImplementedError

    def before_frames(self, times_s: Sequence[float]) -> list[str]:
        """Text before the tokens of each frame; an empty list for none."""
        return []
