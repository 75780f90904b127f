"""ATP-LLaVA: between layers of the LLM, drop visual tokens below two thresholds learned for each question (CVPR 2025).

    attention of layer l -> redundancy score  = mean of what visual tokens and question pay a token
    place on the grid    -> spatial score     = how sparse a uniform lattice it belongs to
    scores -> two thresholds;  kept: above either of them

Neither code nor weights were published. What the paper (arXiv 2412.00447) leaves open is decided here and said so:
how scores are brought between 0 and 1, the lattices, the heads' widths, the temperature, that what is learned passes
its gradient through the thresholds and not through the scores, and how masked attention is formed. Ours are the pull
that brings back a threshold which has passed all scores (`rest_weight`), and `pace`.

B rows, P positions of the whole row, K positions kept so far, S pooled scores of a grid
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Explanation, LlmReducer
from mmllm.llm.values import AttentionView, Kept, LlmPass, PruneDecision, PruneView
from mmllm.registry import register

log = logging.getLogger(__name__)

POOLED = 16
"""Scores are pooled to this many rows and columns before thresholds are read off them."""
_START = 0.01
"""Thresholds before training, at which next to nothing is dropped."""

_SATURATED = 1e-6
"""Closer than this to 0 or 1 the logit of a threshold is not told apart."""


@dataclass(frozen=True, kw_only=True)
class AtpConfig:
    """Where tokens are dropped, and how many the thresholds should learn to keep."""

    depths: tuple[float, ...] = (0.125, 0.4375, 0.75)
    """After which share of the LLM's layers; the published layers 4, 14 and 24 of 32."""
    ratio: float = 0.25
    """Share of visual tokens, averaged over all layers, that training aims at; 144 of 576 in the paper."""
    strides: tuple[int, ...] = (6, 4, 3, 2)
    """Spacings of the uniform lattices, sparsest first."""
    lattice_weight: float = 3.0
    """The paper's lambda_sample: a lattice that samples a share R of the places scores 1 - R * lattice_weight."""
    temperature: tuple[float, float] = (10.0, 100.0)
    """Sharpness of the soft mask at the beginning and at the end of training."""
    depth_weight: float = 0.05
    """Weight of the loss that makes tokens in deep layers cost more."""
    target_weight: float = 0.2
    """Weight of the loss that holds the average number of tokens at the target."""
    rest_weight: float = 0.03
    """Ours: weight of a pull on the thresholds' logits towards 0, a threshold of 0.5. Without it one that has passed
    all scores has no gradient and stays there, and the other stages make up for it. 0 is as published."""
    pace: float = 1.0
    """How fast thresholds are learned, times the LLM's learning rate. At a high rate they shoot past all scores, where
    nothing pulls them back: about 1 / 10 for a small LLM from scratch, 5 or so for one that is fine-tuned."""
    causal: bool = True
    """Average received attention over the queries that can see a token; without, early places are favoured."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0.0, *self.depths, 1.0)))
        require(bool(self.depths) and rising, self, "depths", "shares of the depth between 0 and 1, rising")
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(all(stride >= 1 for stride in self.strides), self, "strides", "at least 1")
        require(all(value > 0 for value in self.temperature), self, "temperature", "positive")
        require(self.pace > 0, self, "pace", "positive")
        for name in ("lattice_weight", "depth_weight", "target_weight", "rest_weight"):
            require(getattr(self, name) >= 0, self, name, "zero or more")

    def layers(self, count: int) -> tuple[int, ...]:
        """After how many of `count` layers tokens are dropped.

        Raises:
            ConfigError: if the LLM is too shallow for that many stages, or `ratio` cannot be reached.
        """
        cuts = tuple(max(1, round(depth * count)) for depth in self.depths)
        if len(set(cuts)) < len(cuts) or cuts[-1] >= count:
            raise ConfigError(f"AtpConfig.depths = {self.depths}: an LLM of {count} layers is too shallow for these")
        if self.ratio <= cuts[0] / count:
            raise ConfigError(
                f"AtpConfig.ratio = {self.ratio}: with all tokens in the first {cuts[0]} of {count} layers, "
                f"must be above {cuts[0] / count:.4g} and at most 1"
            )
        return cuts


def mean_received(total: Tensor, rows: Tensor, *, causal: bool) -> Tensor:
    """float32, B K: attention received (summed over query rows, B K) as a mean over those rows.

    Args:
        total: B K.
        rows: float, B K. How much each query row counts, in order.
        causal: divide by the rows that come no earlier than a token, since only those can see it.
    """
    count = rows.flip(-1).cumsum(-1).flip(-1) if causal else rows.sum(-1, keepdim=True)
    return total / count.clamp(min=1e-6)


def squashed(score: Tensor, count: Tensor) -> Tensor:
    """Attention in (0, 1): s n / (1 + s n), 0.5 for what an average one of `count` (B 1) tokens receives."""
    share = score * count
    return share / (1 + share)


def lattice_scores(place: Tensor, grid: tuple[int, int] | None, strides: tuple[int, ...], weight: float) -> Tensor:
    """float32: 1 - weight / stride^2 of the sparsest lattice that each place (int64) lies on, 0 off all of them.

    Places are counted on the grid, row by row; without a grid along a line, with stride^2 as spacing.
    """
    scores = torch.zeros(place.shape, device=place.device)
    for stride in strides:
        if grid is None:
            on = place % stride**2 == 0
        else:
            on = (place.div(grid[1], rounding_mode="floor") % stride == 0) & (place % grid[1] % stride == 0)
        scores = torch.where(on, scores.clamp(min=1 - weight / stride**2), scores)
    return scores


class Thresholds(nn.Module):
    """Two thresholds for each row, from what its visual tokens receive of each other and of the question."""

    def __init__(self, pace: float = 1.0) -> None:
        super().__init__()
        self.pace = pace
        pooled = POOLED * POOLED
        self.proj = nn.Sequential(nn.Linear(2 * pooled, pooled), nn.GELU())
        self.head_r = nn.Linear(pooled, 1)
        self.head_s = nn.Linear(pooled, 1)
        for head in (self.head_r, self.head_s):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, math.log(_START / (1 - _START)) / pace)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Threshold of the redundancy and of the spatial score, B 1 each, of pooled scores B 2 S."""
        read = self.proj(pooled.flatten(1).to(self.head_r.weight.dtype))
        logits = (
            self.head_r(read) * self.pace,
            self.head_s(read) * self.pace,
        )  # Adam's steps know no scale of a gradient
        return logits[0].sigmoid().float(), logits[1].sigmoid().float()


def pooled_scores(scores: Tensor, visual: Tensor, place: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """B S: scores (B K) of the visual tokens laid on their grid, mean over frames, pooled; 0 where none is alive."""
    rows, cols = grid or (1, int(place[visual].max()) + 1 if bool(visual.any()) else 1)
    slot = place.where(visual, rows * cols)
    total = scores.new_zeros(len(scores), rows * cols + 1)
    summed = total.scatter_add(1, slot, scores)[:, :-1]
    count = total.scatter_add(1, slot, torch.ones_like(scores))[:, :-1]
    mean = summed / count.clamp(min=1)
    if grid is None:
        return nn.functional.adaptive_avg_pool1d(mean.unsqueeze(1), POOLED * POOLED).flatten(1)
    return nn.functional.adaptive_avg_pool2d(mean.unflatten(1, (1, rows, cols)), POOLED).flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageNote:
    """What one stage decided; for the losses and for display."""

    position: Tensor
    """int64, B K. Where in the whole row the judged tokens stand."""
    redundancy: Tensor
    """float32, B K. Between 0 and 1, high for what is attended to."""
    spatial: Tensor
    """float32, B K."""
    thresholds: tuple[Tensor, Tensor]
    """B 1 each."""
    remaining: Tensor
    """float32, B. How many visual tokens go on; a sum of soft masks while training."""
    kept: Tensor
    """bool, B K. The visual tokens that go on, or would if they were dropped for real."""


@register("reducer", "atp", config=AtpConfig)
class AtpReducer(LlmReducer):
    """ATP-LLaVA: drops visual tokens between the LLM's layers, below thresholds learned for each question."""

    def __init__(self, config: AtpConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Thresholds(config.pace) for _ in config.depths)
        self.progress = 0.0
        """How much of the training is done, 0 to 1; sets the temperature."""
        self.skipped = 0
        """How many training passes were skipped because attention or a threshold was not finite."""

    def check(self, layers: int) -> None:
        """Refuses an LLM that is too shallow for the stages, or in which `ratio` cannot be reached.

        Raises:
            ConfigError: naming the setting.
        """
        self.config.layers(layers)

    @property
    def sharpness(self) -> float:
        """Temperature of the soft mask at this point of the training."""
        first, last = self.config.temperature
        return first + (last - first) * min(1.0, max(0.0, self.progress))

    def attention_rows(self, view: AttentionView) -> dict[str, Tensor] | None:
        """Visual positions and the question, ahead of each stage."""
        if view.phase != "prompt" or view.layer + 1 not in self.config.layers(view.layers):
            return None
        kept, current = view.current.kept_at(view.layer), view.current
        return {"visual": kept.counting(current.visual), "question": kept.counting(current.question)}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """Which positions go on after a stage. While training nothing is dropped, attention is weighed instead.

        Raises:
            InputError: if attention or a threshold is not finite; in training the step is skipped.
        """
        cuts = self.config.layers(view.layers)
        if view.layer not in cuts:
            return None
        current, before = view.current, view.before
        visual = before.of(current.visual) & before.valid
        if not bool(visual.any()):
            return self._nothing_to_drop(before)
        if not bool((current.question & current.valid).any()):
            warnings.warn("no text follows the visual tokens: ATP judges them by each other alone", stacklevel=2)
        asking = before.counting(current.visual)
        count = asking.sum(-1, keepdim=True)
        # how much the visual tokens pay each token, and how much the question does
        own = mean_received(view.received["visual"], asking, causal=self.config.causal)
        cross = mean_received(view.received["question"], before.counting(current.question), causal=self.config.causal)
        if not bool((own.isfinite() & cross.isfinite()).all()):
            return self._not_finite(current, before, "was given attention that is not finite")
        place = before.of(current.place)
        redundancy = squashed((own + cross) / 2, count)
        spatial = lattice_scores(place, current.grid, self.config.strides, self.config.lattice_weight)
        pooled = [pooled_scores(squashed(score, count) * asking, visual, place, current.grid) for score in (own, cross)]
        theta_r, theta_s = self.stages[cuts.index(view.layer)](torch.stack(pooled, dim=1))
        if not bool((theta_r.isfinite() & theta_s.isfinite()).all()):
            return self._not_finite(current, before, "has thresholds that are not finite")
        keep = (redundancy > theta_r) | (spatial > theta_s)
        best = redundancy.masked_fill(~visual, -1.0)
        keep = keep | (best == best.amax(-1, keepdim=True))  # never nothing at all
        kept = keep & visual
        decision, remaining = PruneDecision(keep=keep | ~visual), kept.sum(-1).float()
        if self.training:
            for cut, earlier_stage in view.notes.items():
                kept = kept & earlier_stage.kept if cut < view.layer else kept
            # a place off all lattices has no say in space: 0 - theta_s would leave it half a token as theta_s nears 0
            sampled = (spatial - theta_s).masked_fill(spatial <= 0, -torch.inf)
            margin = torch.maximum(redundancy - theta_r, sampled)
            earlier = torch.ones_like(margin) if before.weight is None else before.weight
            weight = torch.where(visual, (margin * self.sharpness).sigmoid() * earlier, 1.0)
            decision, remaining = PruneDecision(weight=weight), (weight * visual).sum(-1)
        view.notes[view.layer] = StageNote(
            position=before.position,
            redundancy=redundancy,
            spatial=spatial,
            thresholds=(theta_r, theta_s),
            remaining=remaining,
            kept=kept,
        )
        return decision

    def _nothing_to_drop(self, before: Kept) -> PruneDecision | None:
        return PruneDecision(weight=torch.ones_like(before.valid, dtype=torch.float32)) if self.training else None

    def _not_finite(self, current: LlmPass, before: Kept, what: str) -> PruneDecision | None:
        """An error, but in training a step that is skipped and counted."""
        if not self.training:
            raise InputError(f"ATP {what}")
        if not current.unusable:
            self.skipped += 1
            log.warning("ATP %s: the step is skipped, the %d. so far", what, self.skipped)
        current.unusable = True
        return self._nothing_to_drop(before)

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """The redundancy score of every visual token at the first stage, B P."""
        notes = current.notes_of(self)
        if not notes:
            return None
        first = notes[min(notes)]
        values = torch.full(current.visual.shape, torch.nan, device=first.redundancy.device)
        values = values.scatter(1, first.position, first.redundancy).masked_fill(~current.visual, torch.nan)
        return Explanation(name="ATP's redundancy score", values=values)

    def llm_losses(self, current: LlmPass, layers: int) -> dict[str, Tensor]:
        """The budget's losses of a finished pass, weighted (Eq. 12 and 13); empty without visual tokens.

        Of a pass that is unusable, `atp_skipped`: a zero from which nothing gets a gradient.

        `atp_depth`: tokens left after a stage, as a share, times the number of its layer. `atp_target`: how far the
        number of tokens, averaged over all layers, is from the target. `atp_rest`, ours: the squared logits of the
        thresholds.

        Args:
            current: the pass.
            layers: how many layers the LLM has.
        """
        if current.unusable:
            return {"atp_skipped": torch.zeros((), device=current.visual.device, requires_grad=True)}
        notes = current.notes_of(self)
        if not notes:
            return {}
        whole = (current.visual & current.valid).sum(-1).clamp(min=1).float()  # B
        deep = sum(note.remaining / whole * layer for layer, note in notes.items())
        distance = (self.average(current, layers) - self.config.ratio * whole).abs()
        logits = torch.cat([torch.logit(theta, eps=_SATURATED) for note in notes.values() for theta in note.thresholds])
        return {
            "atp_depth": self.config.depth_weight * torch.as_tensor(deep).mean(),
            "atp_target": self.config.target_weight * distance.mean(),
            "atp_rest": self.config.rest_weight * logits.square().sum() / len(whole),
        }

    def average(self, current: LlmPass, layers: int, *, hard: bool = False) -> Tensor:
        """float32, B: visual tokens averaged over the LLM's layers, soft as in training or counted as if dropped."""
        count = (current.visual & current.valid).sum(-1).float()
        notes = current.notes_of(self)
        edges = [*sorted(notes), layers]
        total = count * edges[0]
        for cut, end in pairwise(edges):
            note = notes[cut]
            total = total + (note.kept.sum(-1) if hard else note.remaining) * (end - cut)
        return total / layers
