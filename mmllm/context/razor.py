"""RazorAttention: heads that look back keep all keys, the others keep the ends and one token for the rest (2407.15891).

    protected heads: everything | others: [compensation token | sinks | window], in banks of their own in each layer

The compensation token has the mean key and the mean value of all keys that are gone, and counts as often as there were:
its logit gets the logarithm of their number. Heads are found once for an LLM, by `mmllm calibrate`.

B rows, G key heads, K keys, D head width, L layers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.context.budgets import Budget, count_of, require_budget
from mmllm.context.evicting import EvictingConfig, EvictingPolicy
from mmllm.context.keeping import first_keys, kept_keys, recent_keys
from mmllm.context.razor_heads import protected_heads, scores_of, search_heads
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.calibration import Calibration
from mmllm.llm.values import AttentionView, KeptBank, KeptKeys, Reweighed
from mmllm.registry import register

_MADE = "`mmllm calibrate razor --output FILE` writes it"


@dataclass(frozen=True, kw_only=True)
class RazorConfig(EvictingConfig):
    """The defaults are those of the paper."""

    heads: str | None = None
    """File that `mmllm calibrate razor` has written for this LLM. It has to be given."""
    echo: float = 0.01
    """Share of all key heads that is protected as echo heads; at least one, if not 0."""
    induction: float = 0.14
    """Share of all key heads that is protected as induction heads; at least one, if not 0."""
    sinks: int = 4
    """First positions that the other heads keep."""
    window: Budget = 0.2
    """Last positions that the other heads keep: a count, or a share of the prompt."""
    least: int = 4000
    """The window has at least so many positions."""
    compensate: bool = True
    """One token stands for all keys that are gone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_budget(self, "window")
        for field in ("echo", "induction"):
            require(0 <= getattr(self, field) <= 1, self, field, "from 0 to 1")
        require(self.sinks >= 0, self, "sinks", "0 or more")
        require(self.least >= 0, self, "least", "0 or more")


@register("context", "razor", config=RazorConfig)
class Razor(EvictingPolicy):
    """RazorAttention: heads that look back keep all keys, the others the ends, and one token for the rest."""

    config: RazorConfig

    def __init__(self, config: RazorConfig) -> None:
        """Reads the file with the scores of the heads.

        Raises:
            ConfigError: if there is none, it cannot be read, or has other content.
        """
        if config.heads is None:
            raise ConfigError(f"context 'razor' needs heads=FILE: {_MADE}")
        self.config = config
        self.calibration = Calibration(config.heads, "razor")
        echo, induction = (scores_of(self.calibration.values, kind) for kind in ("echo", "induction"))
        self.protected = protected_heads(echo, induction, config.echo, config.induction)
        """bool, L G: the heads that keep all keys."""

    def budget_of(self, free: int) -> int:
        """How many of so many keys stay, on average over all heads of the LLM."""
        ends = max(self.config.least, count_of(self.config.window, free)) + self.config.compensate
        share = float(self.protected.float().mean())
        return round(free * share + min(free, ends) * (1 - share))

    @classmethod
    def calibrate(cls, decoder: nn.Module, ask: Callable[[], object], seed: int) -> dict[str, Any]:
        """The echo and the induction score of each key head, in a prompt of random words."""
        return search_heads(decoder, getattr(decoder.config, "bos_token_id", None), seed)

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Refuses a file of an LLM of another depth.

        Raises:
            ConfigError: naming both depths.
        """
        if len(self.protected) != len(layers):
            path = self.calibration.path
            raise ConfigError(f"{path} is of an LLM of {len(self.protected)} layers, not {len(layers)}: {_MADE}")
        self.calibration.belongs_to(layers)

    def reweigh(self, view: AttentionView) -> Reweighed | None:
        """The compensation token counts as often as there were keys that it stands for."""
        if "gone" not in view.state or self._is_protected(view):
            return None
        gone = view.state["gone"].clamp(min=1).log()
        bias = torch.nn.functional.pad(gone.unsqueeze(-1), (0, view.keys.shape[2] - 1))
        return Reweighed(keys=view.keys, values=view.values, bias=rearrange(bias, "b k -> b 1 1 k"))

    def evict(self, view: AttentionView) -> KeptKeys | tuple[KeptBank, ...] | None:
        """What the other heads keep; once they have lost a key, the protected heads are a bank of their own.

        Raises:
            CheckpointError: if heads were searched for in another LLM.
        """
        self.calibration.require_same_layers()
        protected = self.protected[view.layer]
        if self._is_protected(view) or bool(protected.all()):
            return None
        kept = self._ends(view)
        if kept is None or view.heads is not None or not bool(protected.any()):
            return kept
        whole, ends = (tuple((protected == part).nonzero()[:, 0].tolist()) for part in (True, False))
        if kept.first is not None:
            key, value = (part[:, list(ends)] for part in kept.first)
            kept = replace(kept, first=(key, value))
        return KeptBank(heads=whole, kept=None), KeptBank(heads=ends, kept=kept)

    def _is_protected(self, view: AttentionView) -> bool:
        """Whether a view is of the bank of protected heads."""
        return view.heads is not None and bool(self.protected[view.layer, view.heads[0]])

    def _ends(self, view: AttentionView) -> KeptKeys | None:
        """The compensation token, sinks and window, and protected kinds; None while nothing else is there."""
        config, state = self.config, view.state
        valid = view.valid[:, :1]
        real = valid.clone()
        if "gone" in state:  # the first slot is the compensation token
            real[..., 0] = False
        free = self.free(view.kind[:, :1], real, 1)
        window = self.budgets(view, free, window=config.window)[0].clamp(min=config.least)
        stay = real & (~free | first_keys(real, torch.full_like(window, config.sinks)) | recent_keys(free, window))
        drop = real & ~stay
        if int(drop.sum(-1).max()) < (config.every if view.phase == "token" else 1):
            return None
        if not config.compensate:
            return kept_keys(stay, valid)
        return _compensated(view, stay, drop)


def _compensated(view: AttentionView, stay: Tensor, drop: Tensor) -> KeptKeys:
    """The keys that stay (bool, B 1 K), behind a slot for all that are gone, with those that go now (bool, B 1 K)."""
    before = view.state.get("gone", torch.zeros(len(stay), device=stay.device))
    gone = before + drop.sum((1, 2))
    view.state["gone"] = gone
    first: list[Tensor] = []
    for stored in (view.keys, view.values):
        total = torch.einsum("bk,bgkd->bgd", drop[:, 0].float(), stored.float())
        total = total + before[:, None, None] * stored[:, :, 0].float()
        first.append((total / gone.clamp(min=1)[:, None, None]).to(stored.dtype))
    most = int(stay.sum(-1).max())
    index = stay.to(torch.uint8).argsort(dim=-1, stable=True)[..., stay.shape[-1] - most :]
    # the slot gets the position of a key that is gone, so that all later queries see it
    slot = torch.where((before > 0)[:, None, None], 0, drop.to(torch.uint8).argmax(-1, keepdim=True))
    valid = torch.cat([(gone > 0)[:, None, None], stay.gather(-1, index)], dim=-1)
    return KeptKeys(index=torch.cat([slot, index], dim=-1), valid=valid, first=(first[0], first[1]))
