"""Greedy answers in a loop of our own: of several rows, the most probable token each time, until all have ended.

transformers' loop does the same and much more. What it does beside the LLM's passes takes longer than these where the
LLM is small, or has read nearly all of the prompt before (`mmllm.llm.prefix`).

B rows, L positions of a prompt, N of them not yet in the cache, D width, K new tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits
from mmllm.llm.last_rows import finishing_last
from mmllm.llm.roomy_layer import with_room

_READ = frozenset(
    {"max_new_tokens", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "transformers_version"}
)
"""Settings of `generate` that this loop reads, or that change nothing."""
_USUAL = GenerationConfig()


def settings_of(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a configuration of `generate` that are not transformers' own."""
    changed = {name: value for name, value in vars(config).items() if value != getattr(_USUAL, name, None)}
    return {name: value for name, value in changed.items() if not name.startswith("_")}  # others are notes


def is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether settings of transformers' `generate` ask for greedy answers of so many tokens, and for nothing else.

    Args:
        settings: by name; those that are None or False ask for nothing.
    """
    limit = settings.get("max_new_tokens")
    asked = {name for name, value in settings.items() if value is not None and value is not False}
    is_counted = isinstance(limit, int) and limit >= 1
    return is_counted and settings.get("use_cache") is not False and asked <= _READ


@torch.inference_mode()  # of a small LLM's pass, what autograd would prepare takes 6 %
def greedy_ids(
    model: Any,
    embeddings: Tensor,
    mask: Tensor,
    position: Tensor,
    cache: DynamicCache,
    *,
    limit: int,
    ends: Sequence[int],
    pad: int,
) -> Tensor:
    """int64, B K: what the LLM writes behind prompts.

    Args:
        model: one of our models.
        embeddings: B N D, of what is not in the cache.
        mask: B L. 0 at padding.
        position: int64, B N.
        cache: of what comes before; it grows.
        limit: the most tokens.
        ends: ids that end an answer.
        pad: id behind the end of an answer, where others go on.
    """
    decoder, words = model.language_model.base_model, model.get_input_embeddings()
    cache = with_room(cache, limit)
    seen = None if bool(mask.all()) else mask
    ended = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)
    ending = torch.tensor(list(ends), dtype=torch.long, device=embeddings.device)
    written: list[Tensor] = []
    reader = finishing_last(decoder, embeddings.shape[1])  # of the prompt
    while True:
        inputs = {"inputs_embeds": embeddings, "attention_mask": seen, "position_ids": position, CACHE: cache}
        hidden = reader(**inputs, use_cache=True).last_hidden_state[:, -1]
        token = lm_logits(model, hidden).float().argmax(-1).to(ended.device).masked_fill(ended, pad)
        written.append(token)
        ended = ended | torch.isin(token, ending)
        if len(written) == limit or bool(ended.all()):
            return torch.stack(written, dim=1)
        reader, embeddings, position = decoder, words(token.unsqueeze(1)), position[:, -1:] + 1
        seen = None if seen is None else torch.nn.functional.pad(seen, (0, 1), value=1)
