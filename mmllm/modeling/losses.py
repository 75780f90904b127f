"""The loss of training: cross-entropy over the labelled positions, and optional losses for time tokens.

R labelled rows, V vocabulary, B rows of the batch, P positions, D width, K time tokens, A answers with an interval
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmllm.errors import ConfigError
from mmllm.modeling.placeholders import Placed
from mmllm.tokens import HEARD


def token_loss(
    logits: Tensor,
    targets: Tensor,
    time_ids: Tensor | None = None,
    sigma: float = 0.0,
    items: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy of logits (R V) against target ids (R); with `items`, the sum divided by that number.

    With `sigma` > 0 the target of a time token is soft over its neighbours: weight exp(-(i-j)^2 / (2 sigma^2)) on
    time token i where j is right, normalised over the time tokens; other targets stay one-hot.
    """
    if not len(targets):
        return logits.sum() * 0.0
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    if sigma > 0 and time_ids is not None and len(time_ids):
        first, count = time_ids[0], len(time_ids)
        is_time = (targets >= first) & (targets < first + count)
        if is_time.any():
            j = (targets[is_time] - first).unsqueeze(1)
            i = torch.arange(count, device=targets.device)
            soft = functional.softmax(-((i - j) ** 2) / (2 * sigma**2), dim=-1)  # rows x K
            log_p = functional.log_softmax(logits[is_time].float(), dim=-1)[:, time_ids]
            losses = losses.masked_scatter(is_time, -(soft * log_p).sum(dim=-1))
    return losses.mean() if items is None else losses.sum() / items


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """The first interval of every answer that has one, as positions in the batch and fractions of the video."""

    row: Tensor
    """int64, A. Row of the batch."""
    position: Tensor
    """int64, A. The position from which the first time token is predicted."""
    start: Tensor
    """float, A. Start, as a fraction of the video's duration, 0..1."""
    end: Tensor
    """float, A."""

    def where(self, chosen: Tensor) -> Intervals:
        """The intervals with True in `chosen` (bool, A)."""
        return Intervals(
            row=self.row[chosen], position=self.position[chosen], start=self.start[chosen], end=self.end[chosen]
        )


def intervals_of(labels: Tensor, time_ids: Tensor, segments: Tensor | None) -> Intervals:
    """The first two time tokens of each answer, from labels B P. Answers with fewer are left out."""
    first, count = int(time_ids[0]), len(time_ids)
    is_time = (labels >= first) & (labels < first + count)
    intervals: list[tuple[int, int, float, float]] = []
    for b in range(len(labels)):
        positions = is_time[b].nonzero().squeeze(1).tolist()
        by_segment: dict[int, list[int]] = {}
        for place in positions:
            by_segment.setdefault(0 if segments is None else int(segments[b, place]), []).append(place)
        for places in by_segment.values():
            if len(places) >= 2 and places[0] > 0:
                start, end = sorted((int(labels[b, place]) - first) / (count - 1) for place in places[:2])
                intervals.append((b, places[0] - 1, start, end))
    columns = list(zip(*intervals, strict=True)) if intervals else [(), (), (), ()]
    indices = [torch.tensor(column, dtype=torch.long, device=labels.device) for column in columns[:2]]
    bounds = [torch.tensor(column, dtype=torch.float32, device=labels.device) for column in columns[2:]]
    return Intervals(row=indices[0], position=indices[1], start=bounds[0], end=bounds[1])


class GroundingHead(nn.Module):
    """An auxiliary loss of training: the start of an answer points at the frames of its interval.

    Hidden states of two positions are compared with those of the video's one-frame tokens. The position that predicts
    the first time token points at all frames inside the interval, and at its first frame. The position that predicts
    the second time token points at the last frame.
    """

    def __init__(self, width: int, pointer_weight: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.queries = nn.ModuleDict(
            {name: nn.Linear(width, width, bias=False) for name in ("inside", "first", "last")}
        )
        self.keys = nn.Linear(width, width, bias=False)
        self.pointer_weight = pointer_weight

    def forward(self, hidden: Tensor, placed: Placed, intervals: Intervals, frame_fraction: Tensor) -> Tensor:
        """Mean loss over the answers with an interval.

        Args:
            hidden: B P D, hidden states of one layer of the LLM.
            placed: the batch. The one-frame tokens of each row's first video are the targets.
            intervals: the intervals of the answers.
            frame_fraction: float, B T. When each frame of a row's first video is shown, as a fraction of its duration.
        """
        intervals = intervals.where((placed.which == 0).any(dim=1)[intervals.row])  # rows with a video
        if not len(intervals.row):
            return hidden.sum() * 0.0
        hidden = self.norm(hidden)
        frame_position = _first_one_frame_positions(placed, frame_fraction.shape[1])  # B T, -1 where there is none
        pointable = (frame_position >= 0)[intervals.row]  # A T
        if not pointable.any(dim=1).all():
            raise ConfigError(
                "the grounding loss points at tokens of one frame, and a row has none: set loss.grounding_weight = 0"
            )
        index = frame_position.clamp(min=0).unsqueeze(-1).expand(*frame_position.shape, hidden.shape[-1])
        key = self.keys(hidden).gather(1, index)
        start, end = hidden[intervals.row, intervals.position], hidden[intervals.row, intervals.position + 1]

        def pointed(name: str, query: Tensor) -> Tensor:
            score = torch.einsum("ad,atd->at", self.queries[name](query), key[intervals.row]) * query.shape[-1] ** -0.5
            score = score.masked_fill(~pointable, torch.finfo(score.dtype).min)
            return score.float().log_softmax(dim=-1)  # A T

        fraction = frame_fraction[intervals.row]
        gap = 1 / max(fraction.shape[1] - 1, 1)
        # A frame counts as inside if it is at most half a gap outside. So even a short interval has a frame.
        # If no such frame has a token, the nearest frame that has one counts.
        distance = torch.maximum(intervals.start.unsqueeze(1) - fraction, fraction - intervals.end.unsqueeze(1))
        distance = distance.masked_fill(~pointable, torch.inf)
        inside = distance <= torch.clamp(distance.min(dim=1, keepdim=True).values, min=gap / 2)
        mass = pointed("inside", start).masked_fill(~inside, -torch.inf).logsumexp(dim=-1).clamp(min=-20.0)
        first = _near(fraction, intervals.start, gap, pointable) * pointed("first", start)
        last = _near(fraction, intervals.end, gap, pointable) * pointed("last", end)
        return -mass.mean() - self.pointer_weight * (first + last).sum(dim=-1).mean()


def _near(fraction: Tensor, instant: Tensor, gap: float, pointable: Tensor) -> Tensor:
    """A T: weights over `pointable` frames that fall off with the distance to an instant, one gap being one sigma."""
    closeness = -((fraction - instant.unsqueeze(1)) ** 2) / (2 * gap**2)
    return closeness.masked_fill(~pointable, -torch.inf).softmax(dim=-1)


def _first_one_frame_positions(placed: Placed, frames: int) -> Tensor:
    """B T: the first position of a row's first video that shows frame t alone; -1 where no position does.

    If sound follows a frame, it is the first position of the sound: only from there on both are known to the LLM.
    """
    shows_one_frame = (placed.which == 0) & (placed.frame >= 0) & (placed.frame < frames)
    seen = _first_positions(placed, shows_one_frame, frames)
    heard = _first_positions(placed, shows_one_frame & (placed.place == HEARD), frames)
    return heard.where(heard >= 0, seen)


def _first_positions(placed: Placed, among: Tensor, frames: int) -> Tensor:
    """B T: the first of some positions (bool, B P) that belongs to frame t; -1 where there is none."""
    rows, positions = among.nonzero(as_tuple=True)
    never = placed.frame.shape[1]
    first = torch.full((len(placed.frame) * frames,), never, dtype=torch.long, device=placed.frame.device)
    first = first.scatter_reduce(0, rows * frames + placed.frame[among], positions, "amin")
    return first.masked_fill(first == never, -1).view(-1, frames)
