"""TempScale: attention is sharpened by a temperature, against the flat attention of long texts (arXiv 2410.24200).

    softmax(q . k / (tau * sqrt(D)))

The paper is about embedding models; in an LLM it is a probe.

B rows, H query heads, G key heads, N new positions, K keys, D head width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import ContextPolicy
from mmllm.llm.values import AttentionView, Reweighed
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class TempScaleConfig:
    """The temperature, and from which length on it works."""

    tau: float = 0.9
    """The temperature; below 1 attention is sharper, and 1 changes nothing."""
    above: int = 0
    """The temperature works in rows that have more positions than this."""

    def __post_init__(self) -> None:
        require(0 < self.tau < float("inf"), self, "tau", "above 0")
        require(self.above >= 0, self, "above", "0 or more")


@register("context", "tempscale", config=TempScaleConfig)
class TempScale(ContextPolicy):
    """TempScale: divides the logits of each attention by a temperature, in long rows."""

    family = "store"

    depends_on_question = False

    @property
    def keeps_prefix(self) -> bool:
        """Whether it works at every length: a video's part of a prompt may be shorter than `above`."""
        return not self.config.above

    def __init__(self, config: TempScaleConfig) -> None:
        self.config = config

    def reweigh(self, view: AttentionView) -> Reweighed | None:
        """The keys divided by the temperature in long rows, the values as they are; None where nothing changes.

        Raises:
            InputError: if a key that is divided is too large a number for its type.
        """
        tau, dtype = self.config.tau, view.keys.dtype
        long = view.valid.sum(-1)[:, :1] > self.config.above  # B 1
        if tau == 1 or not bool(long.any()):
            return None
        factor = torch.where(long, torch.tensor(1 / tau, device=long.device), 1.0)
        keys = view.keys * factor[..., None, None].to(dtype)
        if tau < 1 and not bool((keys.isfinite() | ~view.keys.isfinite()).all()):
            raise InputError(f"TempScaleConfig.tau = {tau}: keys divided by it are too large for {dtype}")
        return Reweighed(keys=keys, values=view.values)
