"""What a visitor of the demo can choose, what it costs, and why a choice is impossible. No video is read for that."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from mmllm import registry
from mmllm.app.limits import MOST_FRAMES
from mmllm.fields import require
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes, stage_costs
from mmllm.model import MmllmForConditionalGeneration
from mmllm.stages import stages_of
from mmllm.tokens import VisualTokens

OWN, NONE = "as trained", "none"
"""Choices that are no names of parts: the model's own stage, and no reducer."""
CHAIN_OFF = "off"
CHAIN_CHOICES = (CHAIN_OFF, "auto", "2", "3", "4")
"""Choices of how many parts of a video are looked at first."""
_TRIED_FRAMES = 4
"""Most frames of the zeros with which a path is tried."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video becomes the visual tokens of the LLM."""

    frames: int
    """Number of sampled frames."""
    reducer: str = OWN
    """A name, or a name with settings such as `hired:ratio=0.2,alpha=0.5`; with settings, `share` is not used."""
    share: float = 0.25
    """Fraction of the tokens that a reducer without settings keeps."""
    path: str = OWN
    """A name, or a name with settings such as `slowfast:mode=temporal`."""

    def __post_init__(self) -> None:
        allowed = isinstance(self.frames, int) and 1 <= self.frames <= MOST_FRAMES
        require(allowed, self, "frames", f"from 1 to {MOST_FRAMES}")
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
        """The reducer, with `share` as its ratio if it has a ratio and no settings were given."""
        if ":" in self.reducer:
            return self.reducer
        names = {field.name for field in fields(registry.find("reducer", self.reducer).config)}
        if "ratio" not in names:
            return self.reducer
        return f"{self.reducer}:ratio={self.share:g}"

    def __str__(self) -> str:
        reducer = self.reducer if self.reducer in (OWN, NONE) else self._reducer
        return f"{self.frames} frames, reducer {reducer}, path {self.path}"


def reducer_choices() -> list[str]:
    """Entries of the list of reducers; a visitor can also type a name with settings."""
    return [OWN, NONE, *registry.parts("reducer")]


def path_choices() -> list[str]:
    """Entries of the list of paths: each path, and each value of its `Literal` fields."""
    choices = [OWN]
    for name, part in registry.parts("path").items():
        choices.append(name)
        for field, kind in typing.get_type_hints(part.config).items():
            if typing.get_origin(kind) is Literal:
                choices += [f"{name}:{field}={value}" for value in typing.get_args(kind)]
    return choices


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What settings cost, computed without a video."""

    stages: Sequence[dict[str, Any]]
    """For each stage: `stage`, its name, `tokens` and `detail`."""
    cache_bytes: int
    """Bytes of the LLM's key-value cache for the visual tokens."""

    @property
    def tokens(self) -> int:
        """Visual tokens that the LLM reads."""
        return self.stages[-1]["tokens"]


def cost_of(qa: VideoQA, settings: Settings) -> Cost:
    """The cost of a video under these settings.

    Args:
        qa: the model, with its own stages.
        settings: the visitor's choice.

    Raises:
        InputError: if the parts do not fit each other or this model; the message gives the reason.
    """
    model = qa.with_stages(**settings.stages).model
    _try_path(model, min(settings.frames, _TRIED_FRAMES))
    config = model.config
    stages = stage_costs(**stages_of(config), frames=settings.frames, width=config.text_config.hidden_size)
    bytes_per_number = next(qa.model.language_model.parameters()).element_size()
    return Cost(stages=stages, cache_bytes=cache_bytes(config.text_config, stages[-1]["tokens"], bytes_per_number))


@torch.no_grad()
def _try_path(model: MmllmForConditionalGeneration, frames: int) -> None:
    """Runs the path on zeros, because only the path itself knows whether it takes this patch grid."""
    grid, width = model.encoder.grid, model.config.text_config.hidden_size
    count = model.encoder.tokens_per_frame if grid is None else grid[0] * grid[1]
    zeros = torch.zeros(1, frames, count, width, dtype=model.dtype, device=model.input_device)
    model.path(VisualTokens(features=zeros, grid=grid, times_s=torch.arange(frames).float()[None]))
