"""Everything stays: the baseline whose counters the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.interfaces import ContextPolicy
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """`Full` has no settings."""


@register("context", "full", config=FullConfig)
class Full(ContextPolicy):
    """Everything stays in the cache: the baseline, with counters."""

    family = "keep"
    depends_on_question = False

    def __init__(self, config: FullConfig) -> None:
        self.config = config
