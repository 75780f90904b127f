"""Double Sparsity: a few channels of queries and keys say which keys an attention reads (arXiv 2408.07092).

    calibration: importance of a channel = mean |q_c k_c| over tokens -> the first D / factor channels of each head
    each step: logits of these channels (label logits) -> the heavy best keys, with the new one among all others
        -> their exact attention

The cache stays whole. Label logits are computed for all keys, from few channels, and a plain cache does not store those
apart: so it reads fewer keys, and is no faster on a CPU.

B rows, N new positions, H query heads, G key heads, K keys, D head width, C channels that are looked at
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmllm.context.budgets import Budget, counts_of, require_budget
from mmllm.context.choosing import SelectingPolicy, chosen_keys, note_refreshes
from mmllm.context.doublesparse_channels import (
    best_channels,
    by_key_head,
    channel_importance,
    channels_of,
    label_logits,
    measured_channels,
)
from mmllm.context.keeping import best_keys
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.calibration import Calibration
from mmllm.llm.values import AttentionView, GatheredKeys
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class DoubleSparseConfig:
    """How many channels and keys."""

    channels: str | None = None
    """File that `mmllm calibrate` has written for this LLM; None to calibrate by each prompt itself."""
    factor: int = 8
    """f: one in so many channels is looked at; 1 for all, and so for the true highest logits."""
    heavy: Budget = 0.0625
    """Keys that each query head reads: a count, or a share of all keys."""
    bits: Literal[4, 16] = 16
    """Bits of a number in the channels that are looked at; 4 rounds them as released."""
    dense_layers: int = 2
    """First layers that read all keys."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, self, "factor", "at least 1")
        require_budget(self, "heavy")
        require(self.dense_layers >= 0, self, "dense_layers", "0 or more")


@register("context", "doublesparse", config=DoubleSparseConfig)
class DoubleSparse(SelectingPolicy):
    """Double Sparsity: a few channels of queries and keys rank all keys, and only the best are read."""

    @property
    def keeps_prefix(self) -> bool:
        """Whether channels come from a file: then a question is answered alike if the video was read before."""
        return self.config.channels is not None

    def __init__(self, config: DoubleSparseConfig) -> None:
        self.config = config
        self.calibration = None if config.channels is None else Calibration(config.channels, "doublesparse")
        self.channels: Tensor | None = None
        """int64, L G D: the channels of each layer and key head, the most important first; None without a file."""

    @classmethod
    def calibrate(cls, decoder: nn.Module, ask: Callable[[], object], seed: int) -> dict[str, Any]:
        """The order of the channels of each key head, in prompts about videos."""
        return measured_channels(decoder, ask)

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Takes the channels from the file.

        Raises:
            ConfigError: if the heads have fewer channels than one in `factor`, or the file does not fit.
        """
        width = getattr(layers[0].self_attn, "head_dim", None)
        if width is not None and self.config.factor > width:
            raise ConfigError(f"DoubleSparseConfig.factor = {self.config.factor}: must be at most the {width} channels")
        if self.calibration is not None:
            self.calibration.belongs_to(layers)
            self.channels = channels_of(self.calibration.values, len(layers))

    def select(self, view: AttentionView) -> GatheredKeys | None:
        """The best keys, for each query head; None while the prompt is read, and in dense layers.

        Raises:
            CheckpointError: if the channels were measured in another LLM.
        """
        if self.calibration is not None:
            self.calibration.require_same_layers()
        if view.layer < self.config.dense_layers:
            return None
        if view.phase != "token":
            self._measure(view)
            return None
        valid = view.valid
        count = counts_of(self.config.heavy, valid)
        if bool((count >= valid.sum((1, 2))).all()):
            return None
        logits = label_logits(view.query, view.keys, self._channels(view), self.config.bits)[:, :, 0]
        seen = best_keys(logits, valid.expand_as(logits), count)
        note_refreshes(view, torch.ones(len(seen), dtype=torch.bool))
        return chosen_keys(seen, valid)

    def _measure(self, view: AttentionView) -> None:
        """Without a file: the order of channels by the first pass of a row; later passes keep it."""
        if self.channels is None and "channels" not in view.state:
            valid = view.valid[:, 0, -view.query.shape[2] :]
            importance = channel_importance(view.query, view.keys[:, :, -view.query.shape[2] :], valid)
            view.state["channels"] = best_channels(by_key_head(importance, view.keys.shape[1]), self.config.factor)

    def _channels(self, view: AttentionView) -> Tensor:
        """int64, (B or 1) G C."""
        if self.channels is None:
            return view.state["channels"]
        count = max(1, view.query.shape[-1] // self.config.factor)
        return self.channels[view.layer, :, :count].unsqueeze(0).to(view.query.device)
