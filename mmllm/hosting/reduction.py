"""Reducers on the visual tokens of a hosted model: which places of a prompt remain, and what stands there.

    medium, M C -> (1, T, n, C) with places and scores -> reducers -> kept places; merged tokens as a linear map M -> M

Reducers that work behind an encoder work here. They see tokens behind the model's own projector. Tokens that are always
kept, such as newlines, stay outside. A merged token stands at the place that its reducer gives it, or in the middle of
its members' places.

T frames, n tokens of a frame, M tokens of a medium, C LLM width, G places of a grid, B rows, N prompt length,
Q ids of a question
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.hosting.encoding import HostedFeatures
from mmllm.hosting.media import Medium
from mmllm.hosting.merging import Members
from mmllm.interfaces import TokenReducer
from mmllm.tokens import IGNORED, VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduced:
    """What reducers leave of one medium."""

    keep: Tensor
    """bool, M. The places that remain; those that are always kept are among them."""
    members: Members | None = None
    """How merged tokens are made of others; None if tokens were only chosen."""

    def rows(self, features: Tensor) -> Tensor:
        """M C: the features with merged tokens at the places that remain. The map is linear, the same for all C."""
        return features if self.members is None else self.members.summed(features)


class ReducerChain:
    """Reducers in a row, on each medium by itself.

    Args:
        reducers: in order.
        embed: from ids (int64, Q) to the LLM's embeddings of them, for reducers that read the question.
    """

    def __init__(self, reducers: Sequence[TokenReducer], embed: Callable[[Tensor], Tensor] | None = None) -> None:
        self.reducers = tuple(reducers)
        self.embed = embed

    @property
    def reads_question(self) -> bool:
        """Whether what remains depends on the text behind the media."""
        return any(reducer.reads_question for reducer in self.reducers)

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The tower's scores by which the reducers rank tokens."""
        return tuple(dict.fromkeys(name for reducer in self.reducers for name in reducer.scores_needed))

    def __call__(self, inputs: Mapping[str, Any], features: HostedFeatures) -> tuple[Tensor, HostedFeatures]:
        """The positions of a prompt that remain (bool, B N), and the features with merged tokens at their places.

        Raises:
            InputError: if a reducer cannot work on a medium; the message names both.
        """
        keep = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
        changes = {}
        for number, medium in enumerate(features.media):
            question = text_behind(inputs, features.media, medium.row) if self.reads_question else None
            reduced = self.of_medium(medium, features.tokens(number), features.scores_of(number), question)
            keep[medium.row, cast(Tensor, medium.places).to(keep.device)] = reduced.keep.to(keep.device)
            if reduced.members is not None:
                changes[number] = reduced.rows
        return keep, features.mapped(changes) if changes else features

    @torch.no_grad()
    def of_medium(
        self,
        medium: Medium,
        features: Tensor,
        scores: Mapping[str, Tensor] | None = None,
        question: Tensor | None = None,
    ) -> Reduced:
        """What remains of one medium.

        Args:
            medium: its frames, grid and places.
            features: M C.
            scores: name -> float, M.
            question: int64, Q, for reducers that read it.

        Raises:
            InputError: if a reducer cannot work on it, changes features without saying how, or leaves nothing.
        """
        tokens, slots = as_tokens(medium, features, scores or {})
        if question is not None and self.embed is not None:
            tokens = tokens.replace(question=question.unsqueeze(0), words=self.embed(question).unsqueeze(0))
        members = Members.of(medium, slots)
        for reducer in self.reducers:
            if reducer.compares_frames and medium.modality == "image":
                continue  # an image, or its tiles: there is no frame before
            _check_layout(reducer, medium)
            after, groups = reducer.with_groups(tokens)
            if after.shape[:2] != tokens.shape[:2]:
                raise InputError(
                    f"{reducer.registered_name!r} must keep {tokens.shape[1]} frames, not {after.shape[1]}"
                )
            if groups is None:
                _check_only_chosen(reducer, tokens, after)
            else:
                members = members.merged(tokens, after, groups)
            tokens = after
        keep, merged = members.remaining(tokens)
        keep |= cast(Tensor, medium.fixed).to(keep.device)
        if not bool(keep.any()):
            raise InputError(f"the reducers leave nothing of a {medium.modality}: at least one token remains")
        return Reduced(keep=keep, members=merged)


def text_behind(inputs: Mapping[str, Any], media: Sequence[Medium], row: int) -> Tensor:
    """int64, Q: the ids behind the last medium of a row, without padding and without answers that are trained.

    Args:
        inputs: `input_ids` (int64, B N), and where they are given `attention_mask` and `labels`.
        media: of the prompt, with their rows and places.
        row: its number.
    """
    ids = inputs["input_ids"][row]
    last = max(int(cast(Tensor, medium.places).max()) for medium in media if medium.row == row)
    said = torch.arange(len(ids), device=ids.device) > last
    if (mask := inputs.get("attention_mask")) is not None:
        said &= mask[row].bool()
    if (labels := inputs.get("labels")) is not None:
        said &= labels[row] == IGNORED
    return ids[said]


def as_tokens(medium: Medium, features: Tensor, scores: Mapping[str, Tensor]) -> tuple[VisualTokens, Tensor]:
    """The tokens of a medium that may be dropped, 1 T n C, and the place of each among the M tokens (int64, T n).

    Frames with fewer tokens are padded; the place of padding is -1.

    Args:
        medium: with the frame and the place of each token.
        features: M C.
        scores: name -> float, M.
    """
    frame_of, place_of = cast(Tensor, medium.frame_of), cast(Tensor, medium.place_of)
    free = (~cast(Tensor, medium.fixed)).nonzero().squeeze(1)
    order = free[(frame_of[free] * (int(place_of.max()) + 1) + place_of[free]).argsort(stable=True)]
    frames = frame_of[order]
    counts = torch.bincount(frames, minlength=medium.frames)  # T
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[frames]
    slots = torch.full((medium.frames, int(counts.max()) if len(order) else 0), -1)
    slots[frames, rank] = order
    present, taken = slots >= 0, slots.clamp(min=0).to(features.device)
    in_order = torch.equal(slots.flatten(), slots[0, :1] + torch.arange(slots.numel())) if slots.numel() else False
    rows = features[int(slots[0, 0]) :][: slots.numel()].view(*slots.shape, -1) if in_order else features[taken]
    tokens = VisualTokens(
        features=rows.unsqueeze(0),
        grid=medium.grid,
        index=place_of[slots.clamp(min=0)].masked_fill(~present, 0).unsqueeze(0).to(features.device),
        mask=present.unsqueeze(0).to(features.device),
        scores={name: values.to(features.device)[taken].unsqueeze(0) for name, values in scores.items()},
        still=medium.modality == "image",
    )
    return tokens, slots


def _check_layout(reducer: TokenReducer, medium: Medium) -> None:
    """Refuses a reducer that needs a grid, for a medium whose tokens have none."""
    if reducer.layout == "grid" and medium.grid is None:
        raise InputError(
            f"{reducer.registered_name!r} needs tokens on one grid, and the {medium.modality} in row {medium.row} has "
            "none (tiles with newlines): use random or uniform, or an image in one tile"
        )


def _check_only_chosen(reducer: TokenReducer, before: VisualTokens, after: VisualTokens) -> None:
    """Refuses a reducer that changed features and did not say how: deepstack features could not follow.

    Raises:
        ConfigError: naming the reducer.
    """
    same_grid = before.grid == after.grid and after.size is None
    if same_grid:
        b, t, tokens, width = before.shape
        count = int(max(before.index.max(), after.index.max())) + 1 if before.index.numel() else 0
        slots = before.index.new_full((b, t, count + 1), -1)  # where in its frame the token of a place stood
        number = torch.arange(tokens, device=slots.device).expand(b, t, -1)
        slots = slots.scatter(2, before.index.where(before.mask, count), number)
        stood = slots.gather(2, after.index.clamp(min=0))
        taken = stood.clamp(min=0).unsqueeze(-1).expand(*stood.shape, width)
        old = before.features.gather(2, taken) if tokens else after.features
        if bool((stood[after.mask] >= 0).all()) and torch.equal(old[after.mask], after.features[after.mask]):
            return
    raise ConfigError(
        f"{reducer.registered_name!r} merges tokens and does not say by which weights (`groups`): it cannot be used in "
        "a hosted model"
    )
