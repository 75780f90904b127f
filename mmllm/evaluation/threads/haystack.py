"""Haystacks of Needle Threading (arXiv 2411.05000): JSON objects of random UUIDs, made anew from their seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from uuid import UUID

from mmllm.errors import InputError

PAIR_CHARACTERS = 80
"""A pair of the JSON text: two UUIDs in quotes, a colon, a comma and two spaces. Published lengths are multiples."""


def pairs_of(seed: int, count: int) -> list[tuple[str, str]]:
    """The keys and values of the published haystack with this repeat number.

    Args:
        seed: the repeat number.
        count: number of pairs, `context_length / PAIR_CHARACTERS`.

    Raises:
        InputError: if there is no pair.
    """
    if count < 1:
        raise InputError(f"a haystack needs at least 1 pair, not {count}")
    generator = random.Random(seed)

    def identifier() -> str:
        return str(UUID(int=generator.getrandbits(128)))

    return [(identifier(), identifier()) for _ in range(count)]


def haystack_text(pairs: Sequence[tuple[str, str]]) -> str:
    """The pairs as a JSON object on one line; of n pairs of UUIDs it has 80 n characters."""
    return json.dumps(dict(pairs))


def place_at(depth: float, count: int) -> int:
    """Which of `count` pairs lies at a depth: 0 is the first, 100 the last.

    Raises:
        InputError: if the depth is none.
    """
    if not 0 <= depth <= 100:
        raise InputError(f"a depth is from 0 to 100 %, not {depth:g}")
    return round(depth / 100 * (count - 1))
