"""SparseVLM: fewer visual tokens behind a few layers of the LLM, by the text that looks at the picture (ICML 2025).

    raters    = the words behind the picture that its tokens are more like than the average word
    behind layers 2, 6, 15: the attention of the raters in that layer -> 300, 200, 110 of 576 stay
    recycled  = of the dropped ones the best 30 %, as means of clusters, one for ten tokens

arXiv 2410.04417. Words are compared with visual tokens once, as they go into the LLM. As published, means are read
behind the tokens that stay, and positions count from the start again; with `positions=keep` everything keeps its
position, and a mean stands where the best of its tokens stood.

B rows, P positions of the whole row, K positions kept so far, R tokens dropped in a row, M means of them, D LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Origin
from mmllm.llm.values import AttentionView, PruneDecision, PruneView
from mmllm.pruning.budget import BUDGET_GUARD
from mmllm.pruning.density_peaks import density_peaks
from mmllm.pruning.steps import StepReducer, equal_steps, require_steps
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class SparseVlmConfig:
    """The defaults are the paper's 192 tokens on average, for an LLM of 32 layers."""

    layers: tuple[int, ...] = (2, 6, 15)
    """The layers, counted from 0, behind which tokens are dropped."""
    ratios: tuple[float, ...] = (0.5208, 0.3472, 0.191)
    """Fractions of the first number of visual tokens that stay behind each of these layers, without the means."""
    counts: tuple[int, ...] = ()
    """Numbers of tokens in place of `ratios`: 303, 110 and 36 for 128 tokens, 66, 30 and 17 for 64."""
    recycled: float = 0.3
    """Share of the dropped tokens that is merged; 0 merges none."""
    clusters: float = 0.1
    """Means for each merged token."""
    positions: Literal["restart", "keep"] = "restart"
    """Whether what remains of the prompt is rotated as if nothing had stood between."""

    def __post_init__(self) -> None:
        require_steps(self, first=0)
        name = "counts" if self.counts else "ratios"
        falling = all(a >= b >= 1 for a, b in zip(self.counts[:1] + self.counts, self.counts, strict=False))
        require(falling, self, "counts", "falling whole numbers from 1 on")
        require(len(getattr(self, name)) == len(self.layers), self, name, f"as many as layers: {len(self.layers)}")
        require(0 <= self.recycled <= 1, self, "recycled", "from 0 to 1")
        require(0 < self.clusters <= 1, self, "clusters", "above 0 and at most 1")

    def count(self, step: int, tokens: int) -> int:
        """How many of `tokens` visual tokens stay in a step, without the means."""
        wanted = self.counts[step] if self.counts else math.floor(tokens * self.ratios[step] + 0.5 + BUDGET_GUARD)
        return min(tokens, max(1, wanted))


@register("reducer", "sparsevlm", config=SparseVlmConfig)
class SparseVlmReducer(StepReducer):
    """SparseVLM: inside the LLM, keeps the visual tokens that the question's words attend to, and means of others."""

    origin = Origin(
        original="arXiv 2410.04417",
        compared_with="its rule written out",
        equal="two steps with their means run by hand, logits <= 1e-5",
    )
    other_needs = "attention of the question's words in the layers it names"
    ranked_by: ClassVar[str] = "SparseVLM: attention of the words that are like the picture"
    config: SparseVlmConfig

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """Three equal steps down to the share, at the depths of layers 2, 6 and 15 of 32; means come on top.

        An LLM of few layers has fewer steps.
        """
        behind = sorted({min(round(layers * depth / 32), layers - 2) for depth in (2, 6, 15)})
        return {"layers": behind, "ratios": equal_steps(share, len(behind))}

    @property
    def before_layers(self) -> tuple[int, ...]:
        """The layers that come next after `layers`."""
        return tuple(layer + 1 for layer in self.config.layers)

    def attention_rows(self, view: AttentionView) -> dict[str, Tensor] | None:
        """The raters, in the layers behind which tokens are dropped."""
        if view.phase != "prompt" or view.layer not in self.config.layers:
            return None
        words = view.current.kept_at(view.layer).of(view.current.notes_of(self)[0])
        return {"raters": words / words.sum(-1, keepdim=True).clamp(min=1)}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The visual tokens and means that the next layer reads, and everything that is not visual.

        Raises:
            InputError: if there is no text behind the visual tokens, or the attention is not finite.
        """
        if view.layer == 0:
            view.notes[0] = raters(view)
        if view.layer not in self.before_layers:
            return None
        step, current = self.before_layers.index(view.layer), view.current
        counts = [self.config.count(step, tokens) for tokens in (current.visual & current.valid).sum(-1).tolist()]
        score = view.received["raters"]
        chosen, visual = self.best(view, score, counts)
        hidden, merged = view.hidden.clone(), torch.zeros_like(chosen)
        for row, dropped in enumerate(visual & ~chosen):
            slots, means = self._means(view.hidden[row], score[row], dropped.nonzero()[:, 0])
            hidden[row, slots], merged[row, slots] = means, True
        return PruneDecision(
            keep=chosen | merged | ~visual,
            hidden=hidden,
            order=_behind(merged, visual) if self.restarts_positions else None,
            restart=self.restarts_positions,
        )

    def _means(self, hidden: Tensor, score: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """The slots of a row (int64, M) at which means of dropped tokens stand, and the means (M D).

        Args:
            hidden: K D.
            score: float32, K.
            dropped: int64, R. Slots.
        """
        if not self.config.recycled or not len(dropped):
            return dropped[:0], hidden[:0]
        count = min(len(dropped), int(len(dropped) * self.config.recycled + BUDGET_GUARD) + 1)
        best = dropped[score[dropped].argsort(descending=True, stable=True)[:count]]
        clusters = min(count, int(count * self.config.clusters + BUDGET_GUARD) + 1)
        cluster = density_peaks(hidden[best].detach()[None], clusters, neighbours=clusters)[1][0]
        number = torch.arange(count, device=best.device)
        first = torch.full_like(number[:clusters], count).scatter_reduce(0, cluster, number, "amin")
        sums = hidden.new_zeros(clusters, hidden.shape[-1], dtype=torch.float32)
        sums = sums.index_add(0, cluster, hidden[best].float())
        members = torch.bincount(cluster, minlength=clusters).unsqueeze(-1)
        return best[first], (sums / members).to(hidden.dtype)


def raters(view: PruneView) -> Tensor:
    """float32, B P, before layer 0: 1 at words behind the picture that are more like it than the average word.

    Each visual token shares itself out among these words, by a softmax of inner products; a word's likeness is its
    mean share. All words rate if they are equally like it.

    Raises:
        InputError: if a row has visual tokens and no text behind them.
    """
    before, current = view.before, view.current
    visual, text = (before.of(rows) & before.valid for rows in (current.visual, current.question))
    rates = torch.zeros_like(text, dtype=torch.float32)
    for row, states in enumerate(view.hidden.detach().float()):
        words = text[row].nonzero()[:, 0]
        if not bool(visual[row].any()):
            continue
        if not len(words):
            raise InputError("SparseVLM ranks visual tokens by the text behind them, and a row has none")
        share = (states[visual[row]] @ states[words].mT).softmax(-1).mean(0)
        above = share > share.mean()
        rates[row, words[above] if bool(above.any()) else words] = 1.0
    return torch.zeros_like(current.visual, dtype=torch.float32).scatter(1, before.position, rates)


def _behind(merged: Tensor, visual: Tensor) -> Tensor:
    """int64, B K: numbers by which means are read behind the other tokens of the run of visual ones that they are in.

    Args:
        merged: bool, B K. The slots of means.
        visual: bool, B K.
    """
    slot = torch.arange(visual.shape[1], device=visual.device).expand(visual.shape)
    text = slot.masked_fill(visual, visual.shape[1])  # slots of text; the next one ends the run
    end = text.flip(-1).cummin(-1).values.flip(-1)
    return torch.where(merged, end, slot)
