"""LITA's time tokens: words of the LLM's vocabulary that name an instant as a fraction of the video's length."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.errors import ConfigError
from mmllm.interfaces import TimeFormat
from mmllm.registry import register
from mmllm.times.vocabulary import TimeTokens


@dataclass(frozen=True, kw_only=True)
class TokenTimesConfig:
    """Nothing to choose: the number of tokens is the model's `num_time_tokens`."""


@register("time", "tokens", config=TokenTimesConfig)
class TokenTimes(TimeFormat):
    """LITA's time tokens, in questions and answers."""

    def __init__(self, config: TokenTimesConfig, *, count: int) -> None:
        if count < 2:
            raise ConfigError(
                f"num_time_tokens = {count}: must be at least 2 for the time format 'tokens'; 'text' needs none"
            )
        self.config = config
        self.time_tokens: TimeTokens | None = TimeTokens(count=count)
        self._tokens = self.time_tokens

    def write(self, text: str, duration_s: float) -> str:
        """`text` with each stamp of seconds replaced by its time token."""
        return self._tokens.write(text, duration_s)

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time token replaced by seconds, put into the template."""
        return self._tokens.read(text, duration_s, template)
