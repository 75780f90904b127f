"""What a model's own vision tower and projector made of the media of a prompt.

B rows, M tokens of a medium, V visual tokens of a feature method in (row, place) order, C LLM width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hosting.media import Medium, Source

ROW_INPUTS = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "token_type_ids",
    "moe_mm_token_type_ids",
    "labels",
)
"""Inputs with one entry for each position of a row."""


def is_pixels(name: str) -> bool:
    """Whether an input of that name holds pixels, or the mask of pixels: only a vision tower reads it."""
    return name.startswith("pixel_")


def facts_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that describe media, such as their grids: neither pixels nor rows."""
    return {
        name: value
        for name, value in inputs.items()
        if value is not None and name not in ROW_INPUTS and not is_pixels(name)
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class HostedFeatures:
    """Visual tokens behind the projector. Nothing that is done with them changes them."""

    outputs: Mapping[Source, Any]
    """What the feature methods returned: transformers' output objects with `pooler_output`, and `deepstack_features` in
    some families. They hold nothing else, so that a stored video does not keep its patches."""
    media: tuple[Medium, ...]
    """In prompt order."""
    facts: Mapping[str, Any]
    """Inputs that describe the media, such as grids; other questions about them need these."""
    scores: Mapping[Source, Mapping[str, Tensor]] = field(default_factory=dict)
    """Feature method -> name -> float32, V: the tower's scores by which reducers rank tokens, if any asked for them."""

    def fresh(self) -> dict[Source, Any]:
        """Copies of the outputs that share their tensors: `generate` writes into the objects that it is given."""
        return {source: slim(output) for source, output in self.outputs.items()}

    def flat(self, source: Source) -> Tensor:
        """V C: all tokens of a feature method."""
        return flat(self.outputs[source].pooler_output)

    def deepstack(self, source: Source) -> list[Tensor]:
        """V C for each early layer of the LLM that adds features; empty in most families."""
        return [flat(level) for level in getattr(self.outputs[source], "deepstack_features", None) or ()]

    def tensors(self) -> list[Tensor]:
        """All tensors of which the LLM's embeddings and positions are made."""
        features = [part for source in self.outputs for part in (self.flat(source), *self.deepstack(source))]
        facts = [part for value in self.facts.values() for part in (value if isinstance(value, list) else [value])]
        return features + [part for part in facts if isinstance(part, Tensor)]

    def of_source(self, source: Source) -> list[Medium]:
        """The media whose tokens a feature method made, in their order."""
        return [medium for medium in self.media if medium.source == source]

    def tokens(self, number: int) -> Tensor:
        """M C: the tokens of a medium, given by its number in prompt order."""
        return self.flat(cast(Source, self.media[number].source))[self._own(number)]

    def scores_of(self, number: int) -> dict[str, Tensor]:
        """Name -> float32, M: the tower's scores of a medium, given by its number in prompt order."""
        scores = self.scores.get(cast(Source, self.media[number].source), {})
        return {name: values[self._own(number)] for name, values in scores.items()}

    def _own(self, number: int) -> slice:
        """Which of the V tokens of its feature method are a medium's."""
        medium = self.media[number]
        own = self.of_source(cast(Source, medium.source))
        start = sum(other.count for other in own[: own.index(medium)])
        return slice(start, start + medium.count)

    def mapped(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> HostedFeatures:
        """Other features of some media: a reducer that merges puts merged tokens at the places that remain.

        Args:
            changes: number of a medium in prompt order -> a linear map of M C to M C. Deepstack features go through it
                as well.
        """
        outputs = {}
        for source, output in self.outputs.items():
            own = self.of_source(source)
            steps = [changes.get(self.media.index(medium)) for medium in own]

            def change(rows: Tensor, own: list[Medium] = own, steps: Sequence[Any] = steps) -> Tensor:
                parts = rows.split([medium.count for medium in own])
                return torch.cat(
                    [part if step is None else step(part) for part, step in zip(parts, steps, strict=True)]
                )

            outputs[source] = _rewritten(output, change)
        return replace(self, outputs=outputs)

    def repeated(self, times: int) -> HostedFeatures:
        """The media of one row for so many rows, each of which asks another question about them.

        Raises:
            InputError: if the features are of several rows.
        """
        if len({medium.row for medium in self.media}) > 1:
            raise InputError("features of several rows cannot be repeated: encode one row alone")
        media = tuple(replace(medium, row=row) for row in range(times) for medium in self.media)
        facts = {name: _repeated(value, times) for name, value in self.facts.items()}
        outputs = {}
        for source, output in self.outputs.items():
            levels = getattr(output, "deepstack_features", None)
            copies = {"pooler_output": _repeated(output.pooler_output, times)}
            if levels is not None:
                copies["deepstack_features"] = [_repeated(level, times) for level in levels]
            outputs[source] = type(output)(**copies)
        scores = {
            source: {name: _repeated(values, times) for name, values in own.items()}
            for source, own in self.scores.items()
        }
        return replace(self, outputs=outputs, media=media, facts=facts, scores=scores)


def slim(output: Any) -> Any:
    """A copy of one of their outputs with only what their `forward` reads of it."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    names = ("pooler_output", "deepstack_features")
    parts = {name: value for name in names if (value := getattr(output, name, None)) is not None}
    # towers of timm have an output class of their own, which cannot be without a tower's last hidden state
    kind = type(output) if isinstance(output, BaseModelOutputWithPooling) else BaseModelOutputWithPooling
    return kind(**parts)


def flat(features: Any) -> Tensor:
    """V C: features in a tensor or in a list of tensors as one row of tokens."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def _rewritten(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An output with changed rows, in the containers that it had."""
    parts = {"pooler_output": _refilled(output.pooler_output, change)}
    levels = getattr(output, "deepstack_features", None)
    if levels is not None:
        parts["deepstack_features"] = [_refilled(level, change) for level in levels]
    return type(output)(**parts)


def _refilled(features: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Features with changed rows, in the container that they were in."""
    rows = change(flat(features))
    if isinstance(features, Tensor):
        return rows.reshape(features.shape)
    pieces = rows.split([part.numel() // part.shape[-1] for part in features])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, features, strict=True)]


def _repeated(values: Any, times: int) -> Any:
    """A tensor or a sequence repeated along its first axis."""
    if isinstance(values, Tensor):
        return torch.cat([values] * times)
    return [value for _ in range(times) for value in values]
