"""MInference: while a long prompt is read, each head sees some columns, diagonals or blocks only (arXiv 2407.02490).

    vertical-slash: the attention of the last rows says which columns and which diagonals stay
    block-sparse:   means of blocks of queries and of keys say which blocks stay
    a-shape:        the first columns and the last diagonals stay

Here the pattern is a mask: it costs what dense attention costs, and shows what a kernel would leave out.

B rows, N positions of the prompt, H query heads, G key heads, D head width, M blocks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from torch import Tensor

from mmllm.context.minference_patterns import blocks_seen, seen_by, vertical_slash
from mmllm.fields import require
from mmllm.interfaces import ContextPolicy
from mmllm.llm.values import AttentionView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class MInferenceConfig:
    """The defaults are those of the released code for a head without an entry in its table."""

    pattern: Literal["vertical-slash", "block-sparse", "a-shape"] = "vertical-slash"
    """What each head sees."""
    vertical: int = 1000
    """Columns; in an a-shape the first ones."""
    slash: int = 6096
    """Diagonals; in an a-shape the nearest ones."""
    blocks: int = 100
    """Blocks of keys for each block of queries, where the pattern is block-sparse."""
    block: int = 64
    """Positions of a block."""

    def __post_init__(self) -> None:
        for field in ("vertical", "slash", "blocks", "block"):
            require(getattr(self, field) >= 1, self, field, "at least 1")


@register("context", "minference", config=MInferenceConfig)
class MInference(ContextPolicy):
    """MInference: while a long prompt is read, each head sees some columns, diagonals or blocks only; a mask."""

    family = "pattern"

    def __init__(self, config: MInferenceConfig) -> None:
        self.config = config

    def select(self, view: AttentionView) -> Tensor | None:
        """bool, B H N N, or B 1 N N: the pattern, while the prompt is read; None where it hides nothing."""
        config, count = self.config, view.query.shape[2]
        if view.phase != "prompt":
            return None
        valid = view.valid[:, 0]
        if config.pattern == "block-sparse":
            if config.blocks >= -(-count // config.block):
                return None
            keys = repeat(view.keys, "b g k d -> b (g r) k d", r=view.query.shape[1] // view.keys.shape[1])
            return blocks_seen(view.query, keys, valid, config.blocks, config.block)
        if max(config.vertical, config.slash) >= count:
            return None
        if config.pattern == "a-shape":
            number = valid.cumsum(-1) - 1
            place = torch.arange(count, device=valid.device).expand(number.shape)
            return seen_by((number < config.vertical).unsqueeze(1), (place < config.slash).unsqueeze(1))
        return seen_by(*vertical_slash(view.query, view.keys, valid, config.vertical, config.slash, view.scaling))
