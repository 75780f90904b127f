"""What a user of the demo can choose, what it will cost, and why a choice is impossible. Nothing is computed here."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from mmllm import registry
from mmllm.fields import require
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes, stage_costs
from mmllm.model import MmllmForConditionalGeneration
from mmllm.stages import stages_of
from mmllm.tokens import VisualTokens

OWN, NONE = "as trained", "none"
"""Choices that are no names of parts: what the model came with, and no reducer at all."""
_TRIED_FRAMES = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is shown to the LLM."""

    frames: int
    """How many frames are sampled."""
    reducer: str = OWN
    """A name, or a description such as `hired:ratio=0.2,alpha=0.5`, in which case `share` is not used."""
    share: float = 0.25
    """Share of the tokens that a reducer named without settings keeps."""
    path: str = OWN
    """A name or a description such as `slowfast:mode=temporal`."""

    def __post_init__(self) -> None:
        require(isinstance(self.frames, int) and 1 <= self.frames <= 10_000, self, "frames", "from 1 to 10000")
        require(0 < self.share <= 1, self, "share", "above 0 and at most 1")

    @property
    def stages(self) -> dict[str, Any]:
        """Arguments of `VideoQA.with_stages`.

        Raises:
            ConfigError: if a name is unknown.
        """
        reducers = None if self.reducer == OWN else [] if self.reducer == NONE else [self._reducer]
        return {"reducers": reducers, "path": None if self.path == OWN else self.path}

    @property
    def _reducer(self) -> str:
        if ":" in self.reducer or "ratio" not in {
            f.name for f in fields(registry.find("reducer", self.reducer).config)
        }:
            return self.reducer
        return f"{self.reducer}:ratio={self.share:g}"

    def __str__(self) -> str:
        reducer = self.reducer if self.reducer in (OWN, NONE) else self._reducer
        return f"{self.frames} frames, reducer {reducer}, path {self.path}"


def reducer_choices() -> list[str]:
    """What the list of reducers offers; any description can be typed besides."""
    return [OWN, NONE, *registry.parts("reducer")]


def path_choices() -> list[str]:
    """What the list of paths offers: each path, and each value of a field that has only a few."""
    choices = [OWN]
    for name, part in registry.parts("path").items():
        choices.append(name)
        for field, kind in typing.get_type_hints(part.config).items():
            if typing.get_origin(kind) is Literal:
                choices += [f"{name}:{field}={value}" for value in typing.get_args(kind)]
    return choices


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What settings will cost, before anything is run."""

    stages: Sequence[dict[str, Any]]
    """`stage`, `tokens` and `detail` of each."""
    cache_bytes: int
    """Size of the LLM's key-value cache of the visual tokens."""

    @property
    def tokens(self) -> int:
        """Visual tokens that the LLM reads."""
        return self.stages[-1]["tokens"]


def cost_of(qa: VideoQA, settings: Settings) -> Cost:
    """What a video costs under these settings.

    Args:
        qa: the model, with its own stages.
        settings: what was chosen.

    Raises:
        InputError: if the parts do not fit each other or this model; the message is the reason.
    """
    model = qa.with_stages(**settings.stages).model
    _try_path(model, min(settings.frames, _TRIED_FRAMES))
    config = model.config
    stages = stage_costs(**stages_of(config), frames=settings.frames, width=config.text_config.hidden_size)
    per_number = next(qa.model.language_model.parameters()).element_size()
    return Cost(stages=stages, cache_bytes=cache_bytes(config.text_config, stages[-1]["tokens"], per_number))


@torch.no_grad()
def _try_path(model: MmllmForConditionalGeneration, frames: int) -> None:
    """Lays out tokens of nothing, since only a path itself can say whether it takes this patch grid."""
    height, width = model.encoder.grid
    nothing = torch.zeros(
        1, frames, height * width, model.config.text_config.hidden_size, dtype=model.dtype, device=model.device
    )
    model.path(VisualTokens(features=nothing, grid=(height, width), times_s=torch.arange(frames).float()[None]))
