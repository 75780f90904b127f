"""ATP-LLaVA: between layers of the LLM, drop visual tokens below two thresholds learned for each question (CVPR 2025).

    attention of layer l -> redundancy score  = mean attention of a token from visual tokens and from the question
    place on the grid    -> spatial score     = high on a sparse uniform lattice, 0 off all lattices
    scores -> two thresholds;  kept: tokens above either of them

Neither code nor weights were published, and the paper (arXiv 2412.00447) leaves these choices open: how scores are
brought between 0 and 1, the lattices, the widths of the heads, the temperature, and how masked attention is formed.
The gradient goes through the thresholds and not through the scores; that is our choice, too. Two settings are not in
the paper: `rest_weight`, which pulls back a threshold that lies beyond all scores, and `pace`.

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
from mmllm.interfaces import Explanation, LlmReducer, Origin
from mmllm.llm.values import AttentionView, Kept, LlmPass, PruneDecision, PruneView
from mmllm.registry import register

log = logging.getLogger(__name__)

POOLED = 16
"""Scores are pooled to this many rows and columns; thresholds are computed from the pooled scores."""
_START = 0.01
"""Value of both thresholds before training. At this value almost nothing is dropped."""

_SATURATED = 1e-6
"""Thresholds are held this far from 0 and 1 before their logit is taken."""


@dataclass(frozen=True, kw_only=True)
class AtpConfig:
    """Where tokens are dropped, and how many the thresholds should learn to keep."""

    depths: tuple[float, ...] = (0.125, 0.4375, 0.75)
    """Tokens are dropped after these fractions of the LLM's layers; the published layers are 4, 14 and 24 of 32."""
    ratio: float = 0.25
    """Fraction of visual tokens, averaged over all layers, that training aims at; 144 of 576 in the paper."""
    strides: tuple[int, ...] = (6, 4, 3, 2)
    """Spacings of the uniform lattices, in patches, sparsest first."""
    lattice_weight: float = 3.0
    """The paper's lambda_sample: a lattice that holds a fraction R of the places scores 1 - R * lattice_weight."""
    temperature: tuple[float, float] = (10.0, 100.0)
    """Sharpness of the soft mask at the beginning and at the end of training."""
    depth_weight: float = 0.05
    """Weight of the loss that makes tokens in deep layers cost more."""
    target_weight: float = 0.2
    """Weight of the loss that holds the average number of tokens at the target."""
    rest_weight: float = 0.03
    """Ours: weight of a pull on the thresholds' logits towards 0, which is a threshold of 0.5. Without it a threshold
    beyond all scores has no gradient and stays there, and the other stages compensate. 0 is as published."""
    pace: float = 1.0
    """Speed at which thresholds are learned, as a multiple of the LLM's learning rate. At a high speed they pass all
    scores and do not come back. Use about 0.1 for a small LLM trained from scratch, about 5 for fine-tuning."""
    causal: bool = True
    """Average received attention only over the queries that can see a token. If False, early places are favoured."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise((0.0, *self.depths, 1.0)))
        require(bool(self.depths) and rising, self, "depths", "fractions of the depth between 0 and 1, rising")
        require(0 < self.ratio <= 1, self, "ratio", "above 0 and at most 1")
        require(all(stride >= 1 for stride in self.strides), self, "strides", "at least 1")
        require(all(value > 0 for value in self.temperature), self, "temperature", "positive")
        require(self.pace > 0, self, "pace", "positive")
        for name in ("lattice_weight", "depth_weight", "target_weight", "rest_weight"):
            require(getattr(self, name) >= 0, self, name, "zero or more")

    def layers(self, count: int) -> tuple[int, ...]:
        """Numbers of layers, of `count`, after which tokens are dropped.

        Raises:
            ConfigError: if the LLM is too shallow for that many stages, or `ratio` cannot be reached.
        """
        cuts = tuple(max(1, round(depth * count)) for depth in self.depths)
        if len(set(cuts)) < len(cuts) or cuts[-1] >= count:
            raise ConfigError(
                f"AtpConfig.depths = {self.depths}: an LLM of {count} layers is too shallow; each stage needs a layer "
                "of its own before the last"
            )
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
        rows: float, B K. Weight of each query row, in order.
        causal: divide by the rows at and after a token, since only these can see it.
    """
    count = rows.flip(-1).cumsum(-1).flip(-1) if causal else rows.sum(-1, keepdim=True)
    return total / count.clamp(min=1e-6)


def squashed(score: Tensor, count: Tensor) -> Tensor:
    """Attention in (0, 1): s n / (1 + s n) of attention s of n = `count` (B 1) tokens; 0.5 for the average token."""
    relative = score * count  # 1 for the average token
    return relative / (1 + relative)


def lattice_scores(place: Tensor, grid: tuple[int, int] | None, strides: tuple[int, ...], weight: float) -> Tensor:
    """float32: 1 - weight / stride^2 of the sparsest lattice that each place (int64) lies on; 0 off all lattices.

    Places are counted on the grid, row by row. Without a grid they lie on a line, and the spacing is stride^2.
    """
    scores = torch.zeros(place.shape, device=place.device)
    for stride in strides:
        if grid is None:
            on_lattice = place % stride**2 == 0
        else:
            on_lattice = (place.div(grid[1], rounding_mode="floor") % stride == 0) & (place % grid[1] % stride == 0)
        scores = torch.where(on_lattice, scores.clamp(min=1 - weight / stride**2), scores)
    return scores


class Thresholds(nn.Module):
    """Two thresholds for each row, from the attention of its visual tokens from each other and from the question."""

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
        """Thresholds of the redundancy score and of the spatial score, B 1 each, from pooled scores B 2 S."""
        hidden = self.proj(pooled.flatten(1).to(self.head_r.bias.dtype))
        # The output is scaled, not the gradient: Adam's steps do not depend on the scale of a gradient.
        logits = (self.head_r(hidden) * self.pace, self.head_s(hidden) * self.pace)
        return logits[0].sigmoid().float(), logits[1].sigmoid().float()


def pooled_scores(scores: Tensor, visual: Tensor, place: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """B S: scores (B K) of the visual tokens on their grid, mean over frames, pooled; 0 at places without a token."""
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
    """int64, B K. Positions of the tokens in the whole row."""
    redundancy: Tensor
    """float32, B K. Between 0 and 1, high for tokens that receive attention."""
    spatial: Tensor
    """float32, B K. The score of each token's lattice."""
    thresholds: tuple[Tensor, Tensor]
    """B 1 each: of the redundancy score and of the spatial score."""
    remaining: Tensor
    """float32, B. Number of visual tokens after the stage; in training the sum of the soft mask."""
    kept: Tensor
    """bool, B K. The visual tokens that are above a threshold. In training they are only weighted, none is dropped."""


@register("reducer", "atp", config=AtpConfig)
class AtpReducer(LlmReducer):
    """ATP-LLaVA: drops visual tokens between the LLM's layers, below thresholds learned for each question."""

    origin = Origin(
        original="arXiv 2412.00447; code and weights are not public",
        compared_with="properties",
        equal="cached answers are those of a whole pass; the soft mask of training tends to the hard one",
    )
    other_needs = "thresholds trained for this LLM"
    learns = "two thresholds of each stage, with the LLM"

    def __init__(self, config: AtpConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Thresholds(config.pace) for _ in config.depths)
        self.progress = 0.0
        """Fraction of the training that is done, 0 to 1; it sets the temperature."""
        self.skipped = 0
        """Number of training passes that were skipped because attention or a threshold was not finite."""

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
        """Visual positions and the question as query rows, in the layer before each stage."""
        if view.phase != "prompt" or view.layer + 1 not in self.config.layers(view.layers):
            return None
        kept, current = view.current.kept_at(view.layer), view.current
        return {"visual": kept.counting(current.visual), "question": kept.counting(current.question)}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The positions that stay after a stage. In training nothing is dropped; attention is weighted instead.

        Raises:
            InputError: if attention or a threshold is not finite; in training the step is skipped instead.
        """
        cuts = self.config.layers(view.layers)
        if view.layer not in cuts:
            return None
        # 1. the visual tokens at this stage, and the query rows whose attention counts
        current, before = view.current, view.before
        visual = before.of(current.visual) & before.valid
        if not bool(visual.any()):
            return self._nothing_to_drop(before)
        if not bool((current.question & current.valid).any()):
            warnings.warn("no text follows the visual tokens: ATP scores them by each other alone", stacklevel=2)
        visual_rows = before.counting(current.visual)
        count = visual_rows.sum(-1, keepdim=True)
        # 2. attention that each token receives from the visual tokens, and from the question
        own = mean_received(view.received["visual"], visual_rows, causal=self.config.causal)
        cross = mean_received(view.received["question"], before.counting(current.question), causal=self.config.causal)
        if not bool((own.isfinite() & cross.isfinite()).all()):
            return self._not_finite(current, before, "got attention that is not finite")
        # 3. two scores of each token, and a threshold for each of them
        place = before.of(current.place)
        redundancy = squashed((own + cross) / 2, count)
        spatial = lattice_scores(place, current.grid, self.config.strides, self.config.lattice_weight)
        pooled = [
            pooled_scores(squashed(score, count) * visual_rows, visual, place, current.grid) for score in (own, cross)
        ]
        theta_r, theta_s = self.stages[cuts.index(view.layer)](torch.stack(pooled, dim=1))
        if not bool((theta_r.isfinite() & theta_s.isfinite()).all()):
            return self._not_finite(current, before, "has thresholds that are not finite")
        # 4. tokens above either threshold stay, and always the one with the highest redundancy score
        keep = (redundancy > theta_r) | (spatial > theta_s)
        best = redundancy.masked_fill(~visual, -1.0)
        keep = keep | (best == best.amax(-1, keepdim=True))
        kept = keep & visual
        decision, remaining = PruneDecision(keep=keep | ~visual), kept.sum(-1).float()
        # 5. in training, a soft mask instead of the decision, multiplied by those of earlier stages
        if self.training:
            for cut, earlier_stage in view.notes.items():
                kept = kept & earlier_stage.kept if cut < view.layer else kept
            # Off all lattices only redundancy counts: with theta_s near 0, 0 - theta_s would give a weight of one half.
            spatial_margin = (spatial - theta_s).masked_fill(spatial <= 0, -torch.inf)
            margin = torch.maximum(redundancy - theta_r, spatial_margin)
            earlier_weight = torch.ones_like(margin) if before.weight is None else before.weight
            weight = torch.where(visual, (margin * self.sharpness).sigmoid() * earlier_weight, 1.0)
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
        """A decision that keeps everything; in training it is a soft mask of ones."""
        return PruneDecision(weight=torch.ones_like(before.valid, dtype=torch.float32)) if self.training else None

    def _not_finite(self, current: LlmPass, before: Kept, what: str) -> PruneDecision | None:
        """An error; in training the step is skipped and counted instead."""
        if not self.training:
            raise InputError(f"ATP {what}")
        if not current.unusable:
            self.skipped += 1
            log.warning("ATP %s: the step is skipped; %d steps skipped so far", what, self.skipped)
        current.unusable = True
        return self._nothing_to_drop(before)

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """The redundancy score of every visual token at the first stage, B P."""
        notes = current.notes_of(self)
        if not notes:
            return None
        first = notes[min(notes)]
        values = current.on_visual(first.position, first.redundancy)
        return Explanation(name="ATP's redundancy score", values=values)

    def llm_losses(self, current: LlmPass, layers: int) -> dict[str, Tensor]:
        """The budget's losses of a finished pass, weighted (Eq. 12 and 13); empty without visual tokens.

        `atp_depth`: fraction of tokens after a stage, times the number of its layer. `atp_target`: distance between the
        number of tokens, averaged over all layers, and the target. `atp_rest`, ours: the squared logits of the
        thresholds. If the pass is unusable there is only `atp_skipped`, a zero that gives no weight a gradient.

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
        """float32, B: number of visual tokens, averaged over the LLM's layers.

        Args:
            current: the finished pass.
            layers: how many layers the LLM has.
            hard: count the kept tokens; else add up `StageNote.remaining`, which is soft in training.
        """
        count = (current.visual & current.valid).sum(-1).float()
        notes = current.notes_of(self)
        edges = [*sorted(notes), layers]
        total = count * edges[0]
        for cut, end in pairwise(edges):
            note = notes[cut]
            total = total + (note.kept.sum(-1) if hard else note.remaining) * (end - cut)
        return total / layers
