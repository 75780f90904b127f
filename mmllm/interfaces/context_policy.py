"""What the LLM still sees of a text that it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from mmllm.errors import ConfigError
from mmllm.interfaces.llm_stage import LlmStage

ContextFamily = Literal["keep", "evict", "select", "pattern", "shorten", "store"]
"""What a policy does: nothing, remove keys from the cache, choose the keys that each pass sees, leave out parts of the
attention of a prompt, let the LLM read fewer positions of the prompt, or store keys and values in another form."""
_ONE_FAMILY = ("evict", "select")
"""Families of which one policy may be used: both decide what a query sees of the cache."""


class ContextPolicy(LlmStage):
    """What the LLM still sees of a text that it has read: a stage without weights and without state of its own.

    What it must remember of a text is in the cache: `view.state` of a layer, `view.by_key` of each of its keys.
    """

    family: ContextFamily
    is_trained: ClassVar[bool] = False
    """Whether the LLM must have been trained with it."""

    @property
    def evicts(self) -> bool:  # type: ignore[override]
        """Whether it removes keys from the cache."""
        return self.family == "evict"

    @property
    def needs_cache(self) -> bool:
        """Whether it can only work behind a cache; others may also be trained with."""
        return self.family in _ONE_FAMILY

    @classmethod
    def calibrate(cls, decoder: nn.Module, ask: Callable[[], object], seed: int) -> dict[str, Any] | None:
        """What is measured of an LLM once, as JSON values for `mmllm calibrate`; None if it measures nothing.

        Args:
            decoder: the LLM without its head.
            ask: asks it about some videos.
            seed: of random numbers.
        """
        return None

    def keys_held(self, visual: int) -> int:
        """Keys of a head that the cache still holds of so many visual tokens, once an answer is written."""
        return visual


def llm_stages(parts: Sequence[Any]) -> list[LlmStage]:
    """The parts that work inside the LLM, in order.

    Raises:
        ConfigError: if more than one removes keys from the cache.
    """
    stages = [part for part in parts if isinstance(part, LlmStage)]
    evicting = [stage.registered_name for stage in stages if stage.evicts]
    if len(evicting) > 1:
        raise ConfigError(f"one stage at most removes keys from the cache, not {' and '.join(evicting)}")
    families: dict[str, str] = {}
    for policy in (stage for stage in stages if isinstance(stage, ContextPolicy)):
        family = "evict" if policy.family in _ONE_FAMILY else policy.family
        if family in families:
            raise ConfigError(
                f"context {families[family]!r} and {policy.registered_name!r} both decide what is seen of the cache: "
                "one policy that evicts or selects, and beside it one of another family, such as a pattern"
            )
        families[family] = policy.registered_name
    return stages
