"""Where an encoded video keeps the LLM's cache of itself between questions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from mmllm.llm.prefix import Prefix


@dataclass(eq=False)
class PrefixSlot:
    """The beginning of the prompts about a video, as an LLM has read it; empty until a question has been asked."""

    kept: Prefix | None = None
    """The last prefix."""


def grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """The numbers of the keys, those of equal keys together."""
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())
