"""Rows of one batch behind prefixes of their own, such as questions about several videos.

    row 0   padding, text, video | question                    what is shorter is padded in front, on both sides of
    row 1   text, longer video   | padding, question           the border: the caches of all rows end there

B rows, A axes of a position, L positions of a row, G key heads, K keys, D head width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from mmllm.errors import ConfigError
from mmllm.llm.harness import takes_shared_prefix
from mmllm.llm.prefix import Prefix, are_full
from mmllm.llm.shared_prefix import SharedPrefixLayer

LEAST_SHARED = 4096
"""Positions of a prefix in all rows together, from which on reading it once costs less than copies:
`benchmarks/shared_prefix.py` measures it."""


def is_joinable(prefix: Prefix) -> bool:
    """Whether its rows may stand beside rows of other prefixes.

    Not with stages inside the LLM, whose states belong to one video, nor with sliding windows, which count padding.
    """
    return prefix.current is None and are_full(prefix.layers)


def rows_behind(prefixes: Sequence[Prefix], prompts: Sequence[Tensor], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` (B L) and `position_ids` (B L, or A B L) of prompts; see `Prefix.rows`.

    Args:
        prefixes: one for each prompt.
        prompts: int64, L each, without padding.
        pad_token_id: id of the padding.

    Raises:
        InputError: if a prompt does not begin with its prefix.
        ConfigError: if different prefixes cannot stand in one batch.
    """
    if _is_shared(prefixes):
        return prefixes[0].rows(prompts, pad_token_id)
    _require_joinable(prefixes)
    own = [prefix.rows([prompt], pad_token_id) for prefix, prompt in zip(prefixes, prompts, strict=True)]
    rows = {}
    for name, filling in (("input_ids", pad_token_id), ("attention_mask", 0), ("position_ids", 0)):
        values = [row[name] for row in own]
        beginnings = [part[..., : len(prefix.ids)] for part, prefix in zip(values, prefixes, strict=True)]
        questions = [part[..., len(prefix.ids) :] for part, prefix in zip(values, prefixes, strict=True)]
        rows[name] = torch.cat([_filled(part, filling, rows=-2) for part in (beginnings, questions)], dim=-1)
    return rows


def shares(prefix: Prefix, rows: int, decoder: nn.Module) -> bool:
    """Whether so many rows read one copy of a prefix: where that costs less than a copy for each.

    Args:
        prefix: of all rows.
        rows: of the batch.
        decoder: the LLM without its head. It is prepared for it.
    """
    worth = rows > 1 and rows * len(prefix.ids) >= LEAST_SHARED
    return worth and is_joinable(prefix) and takes_shared_prefix(decoder)


def cache_behind(prefixes: Sequence[Prefix], copies: int, decoder: nn.Module) -> DynamicCache:
    """A cache with a row for each prefix, every row `copies` times. What is added to it changes no prefix.

    Args:
        prefixes: of the rows.
        copies: how often each row stands in the batch.
        decoder: the LLM without its head that goes on from it.

    Raises:
        ConfigError: if different prefixes cannot stand in one batch.
    """
    if _is_shared(prefixes):
        cache = prefixes[0].cache(len(prefixes) * copies)
        if shares(prefixes[0], len(prefixes) * copies, decoder):
            cache.layers = [SharedPrefixLayer(layer.keys, layer.values) for layer in prefixes[0].layers]
        return cache
    _require_joinable(prefixes)
    cache = prefixes[0].cache(1)
    for number, layer in enumerate(cache.layers):
        own: list[Any] = [prefix.layers[number] for prefix in prefixes]
        for name in ("keys", "values"):
            tensors = [rearrange(getattr(part, name), "b g k d -> b g d k") for part in own]
            joined = rearrange(_filled(tensors, 0, rows=0), "b g d k -> b g k d")
            setattr(layer, name, joined.repeat_interleave(copies, 0))
    return cache


def _is_shared(prefixes: Sequence[Prefix]) -> bool:
    return all(prefix is prefixes[0] for prefix in prefixes)


def _require_joinable(prefixes: Sequence[Prefix]) -> None:
    if not all(map(is_joinable, prefixes)):
        raise ConfigError(
            "questions about different videos cannot share a batch: the LLM has stages or sliding windows"
        )


def _filled(parts: Sequence[Tensor], filling: int, rows: int) -> Tensor:
    """The parts as rows of one tensor, along axis `rows`; shorter ones are filled in front, along the last axis."""
    longest = max(part.shape[-1] for part in parts)
    filled = [torch.nn.functional.pad(part, (longest - part.shape[-1], 0), value=filling) for part in parts]
    return torch.cat(filled, dim=rows)
