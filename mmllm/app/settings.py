"""What a visitor of the demo can choose, what it costs, and why a choice is impossible. No video is read for that."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from mmllm import registry
from mmllm.app.limits import MOST_FRAMES
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.inference.asking import VideoAnswering

OWN, NONE = "as trained", "none"
"""Choices that are no names of parts: the model's own stage, and no reducer."""
ONE_BY_ONE = "one by one"
"""The choice of writing answers one token a pass."""
CHAIN_OFF = "off"
CHAIN_CHOICES = (CHAIN_OFF, "auto", "2", "3", "4")
"""Choices of how many parts of a video are looked at first."""


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


def decoding_choices(own: Iterable[str] = ()) -> list[str]:
    """Entries of the list of decoding methods; those that need a setting can be typed with it.

    Args:
        own: names of methods that the demo's owner has set.
    """
    names = dict.fromkeys([*own, *(name for name in registry.parts("decoding") if _needs_nothing(name))])
    return [ONE_BY_ONE, *names]


def _needs_nothing(name: str) -> bool:
    """Whether a decoding method can be built without a setting."""
    try:
        registry.config_of("decoding", name)
    except ConfigError:
        return False
    return True


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


def cost_of(qa: VideoAnswering, settings: Settings) -> Cost:
    """The cost of a video under these settings.

    Args:
        qa: the model, with its own stages.
        settings: the visitor's choice.

    Raises:
        InputError: if the parts do not fit each other or this model; the message gives the reason.
    """
    stages, size = qa.with_stages(**settings.stages).costs(settings.frames)
    return Cost(stages=stages, cache_bytes=size)
