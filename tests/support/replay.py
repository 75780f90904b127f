"""Drives a policy of the cache over given queries, keys and values: a prompt, then one token after the other.

B rows, L positions, H query heads, G key heads, K keys, D head width
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from mmllm.llm.attention import staged_attention
from mmllm.llm.cache import RecordLayer
from mmllm.llm.later import later_pass
from mmllm.llm.values import LlmPass


@dataclass(kw_only=True)
class Step:
    """What was there after a pass."""

    out: Tensor
    """B H N D: the attention's output."""
    keys: Tensor
    """B G K D: the keys in the cache."""
    position: Tensor
    """int64, B G K: their positions."""
    by_key: dict[str, Tensor]
    """What the policy has noted of each."""


def plain_pass(valid: Tensor, stages) -> LlmPass:
    """The pass of a text without media (`valid`: bool, B L)."""
    number = torch.arange(valid.shape[1]).expand_as(valid)
    nothing = torch.zeros_like(valid)
    return LlmPass(
        visual=nothing, question=nothing, prompt=valid, place=number, frame=number, valid=valid, stages=tuple(stages)
    )


def replayed(
    policy, query: Tensor, key: Tensor, value: Tensor, prompt: int, *, number_of_layers: int = 1
) -> list[Step]:
    """The steps of a policy in one layer: queries B H L D, keys and values B G L D, of which `prompt` come at once."""
    rows, heads, length, _ = query.shape
    module = SimpleNamespace(
        layer_idx=0,
        is_causal=True,
        training=False,
        num_key_value_groups=heads // key.shape[1],
        config=SimpleNamespace(num_hidden_layers=1, own_attn_implementation="sdpa"),
    )
    current = plain_pass(torch.ones(rows, prompt, dtype=torch.bool), [policy])
    record, steps = RecordLayer(), []
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, length))]:
        part = slice(start, stop)
        mask = torch.ones(rows, 1, stop - start, stop, dtype=torch.bool).tril(start)
        if start:
            position_ids = torch.arange(start, stop).expand(rows, -1)
            hidden = query[:, 0, part]
            changed = later_pass(0, record, record, current, hidden, {"position_ids": position_ids}, None)
            mask = changed.get("attention_mask", mask)
        else:
            record.announce(torch.arange(stop).expand(rows, -1), current.valid, stop, kind=current.kind)
        keys, values = record.update(key[:, :, part], value[:, :, part])
        out, _ = staged_attention(module, query[:, :, part], keys, values, mask, llm_pass=current, record=record)
        noted = {name: noted.clone() for name, noted in record.by_key_of(0).items()}
        steps.append(
            Step(out=out.transpose(1, 2), keys=record.keys.clone(), position=record.position.clone(), by_key=noted)
        )
    return steps
