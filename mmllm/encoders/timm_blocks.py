"""timm's transformer blocks taken apart, for reducers that work between attention and MLP.

F frames, N tokens with the class token first, C width, H heads, D width of a head
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from einops import rearrange
from torch import Tensor

from mmllm.errors import ConfigError
from mmllm.interfaces import InsideBlocks


def run_inside(blocks: Iterable[Any], hidden: Tensor, inside: InsideBlocks) -> tuple[Tensor, Any]:
    """Hidden states F N C after some blocks of a timm vision transformer with a reducer inside, and its last state.

    Args:
        blocks: timm's `Block`s.
        hidden: F N C, positions added.
        inside: the reducer.

    Raises:
        ConfigError: if the attention of a block has a gate; such blocks cannot be taken apart.
    """
    blocks = list(blocks)
    state = inside.start(hidden, len(blocks))
    for number, block in enumerate(blocks):
        attention = block.attn
        if getattr(attention, "gate", None) is not None:
            raise ConfigError("a reducer inside the blocks needs attention without a gate, and this tower's has one")
        stacked = rearrange(
            attention.qkv(block.norm1(hidden)), "f n (three h d) -> three f h n d", three=3, h=attention.num_heads
        )
        queries, keys, values = attention.q_norm(stacked[0]), attention.k_norm(stacked[1]), stacked[2]
        mixed, row = inside.attend(queries, keys, values, state)
        mixed = attention.norm(rearrange(mixed, "f h n d -> f n (h d)"))
        hidden = hidden + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(mixed))))
        hidden, state = inside.reduce(number, hidden, row, state)
        hidden = hidden + block.drop_path2(block.ls2(block.mlp(block.norm2(hidden))))
    return hidden, state
