"""Which channels of queries and keys Double Sparsity looks at, and what they say (arXiv 2408.07092).

    importance of a channel = mean |q_c k_c| over positions -> the first D / factor channels of each key head

B rows, N new positions, H query heads, G key heads, K keys, D head width, C channels that are looked at, L layers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.interfaces import LlmStage
from mmllm.llm.calibration import watch
from mmllm.llm.values import AttentionView


def channel_importance(query: Tensor, keys: Tensor, valid: Tensor | None = None) -> Tensor:
    """float32, B H D: the mean of |q_c k_c| over positions, each key repeated for the query heads of its group.

    Args:
        query: B H N D, rotated.
        keys: B G N D, rotated, of the same positions.
        valid: bool, B N. False at padding; None for none.
    """
    groups = keys.shape[1]
    query = rearrange(query.float(), "b (g r) n d -> b g r n d", g=groups)
    product = rearrange((query * keys.float().unsqueeze(2)).abs(), "b g r n d -> b (g r) n d")
    if valid is None:
        return product.mean(2)
    weight = valid[:, None, :, None]
    return (product * weight).sum(2) / weight.sum(2).clamp(min=1)


def by_key_head(importance: Tensor, groups: int) -> Tensor:
    """float32, ... G D: importance of query heads (... H D), added up over those of each key head."""
    return reduce(importance, "... (g r) d -> ... g d", "sum", g=groups)


def best_channels(importance: Tensor, factor: int) -> Tensor:
    """int64, ... C: the most important of the channels (float, ... D), the best first, one in `factor`."""
    count = max(1, importance.shape[-1] // factor)
    return importance.argsort(dim=-1, descending=True, stable=True)[..., :count]


def rounded(values: Tensor, bits: int) -> Tensor:
    """Values (... C), each vector rounded to 2 ** bits steps between its lowest and its highest number."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    spread = high - low
    scale = (2**bits - 1) / spread.masked_fill(spread == 0, 1.0)
    return ((values - low) * scale).round() / scale + low


def label_logits(query: Tensor, keys: Tensor, channels: Tensor, bits: int = 16) -> Tensor:
    """float32, B H N K: logits of the chosen channels only, scaled by the root of their number.

    Args:
        query: B H N D, rotated.
        keys: B G K D, rotated.
        channels: int64, (B or 1) G C: for each key head.
        bits: of a number; below 16 queries and keys are rounded.
    """
    rows, new, groups = len(query), query.shape[2], keys.shape[1]
    channels = channels.expand(rows, -1, -1)
    query = rearrange(query.float(), "b (g r) n d -> b g (r n) d", g=groups)
    asked, labels = (
        part.gather(-1, channels.unsqueeze(2).expand(-1, -1, part.shape[2], -1)) for part in (query, keys.float())
    )
    if bits < 16:
        asked, labels = rounded(asked, bits), rounded(labels, bits)
    logits = asked @ labels.mT / channels.shape[-1] ** 0.5
    return rearrange(logits, "b g (r n) k -> b (g r) n k", n=new)


def channels_of(values: Mapping[str, Any], layers: int) -> Tensor:
    """int64, L G D: the order of channels in a file.

    Raises:
        ConfigError: if it is not one order for each layer and key head.
    """
    try:
        order = torch.tensor(values["channels"], dtype=torch.long, device="cpu")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"a calibration of 'doublesparse' needs channels, layers x heads x channels: {error}"
        ) from error
    numbers = torch.arange(order.shape[-1], device="cpu")
    if order.ndim != 3 or len(order) != layers or not bool((order.sort(-1).values == numbers).all()):
        raise ConfigError(
            f"a calibration of 'doublesparse' needs channels of {layers} layers in some order, not {tuple(order.shape)}"
        )
    return order


class _Measuring(LlmStage):
    """Adds up the importance of channels over prompts, and changes nothing."""

    depends_on_question = False

    def __init__(self) -> None:
        self.total: dict[int, Tensor] = {}
        """Layer -> float32, G D."""

    def select(self, view: AttentionView) -> None:
        """Adds the importance in one prompt, with as much weight as it has positions."""
        if view.phase == "prompt":
            valid = view.valid[:, 0]
            importance = by_key_head(channel_importance(view.query, view.keys, valid), view.keys.shape[1])
            added = (importance * valid.sum(-1)[:, None, None]).sum(0).cpu()
            self.total[view.layer] = self.total.get(view.layer, torch.zeros_like(added)) + added


def measured_channels(decoder: nn.Module, ask: Callable[[], object]) -> dict[str, Any]:
    """The order of the channels of each key head in all prompts of `ask`, as JSON values."""
    measuring = _Measuring()
    watch(decoder, measuring, ask)
    return {"channels": [best_channels(total, 1).tolist() for _, total in sorted(measuring.total.items())]}
