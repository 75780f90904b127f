"""The stages of a model in one description, used by configurations, recipes, commands, the demo and `with_stages`.

    frames -> encoder -> reducers -> visual_tokenizer -> path -> LLM with its stages inside
    time: how times are written, in the processor

A new kind of part takes an entry in `mmllm.registry.KINDS`, its base class in `mmllm.interfaces`, and a slot here, with
a field of `StageNames` for recipes and of `StageChanges` for the command line. What is an `LlmStage` then works inside
the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import closest

Description = str | dict[str, Any]
"""A part as text (`hired:ratio=0.2`) or as a mapping with a `name`."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place in a model that a part fills, or several parts in order."""

    kind: str
    """What `mmllm.registry` calls it."""
    default: Any
    """Of a model that does not name a part for it."""
    several: bool = False
    """Whether it takes a list."""
    changeable: bool = False
    """Whether a trained model can be asked with another part here."""
    in_processor: bool = False
    """Whether the processor has the part, and not the model."""

    def described(self, value: Any) -> Any:
        """What fills the slot as JSON values, with every setting; None stays None.

        Raises:
            ConfigError: for a part, a setting or a value that is not allowed.
        """
        if self.several:
            return [self._described(part) for part in value or ()]
        return None if value is None else self._described(value)

    def _described(self, part: Any) -> dict[str, Any]:
        return registry.describe(self.kind, registry.config_of(self.kind, part))


SLOTS: dict[str, Slot] = {
    "encoder": Slot(kind="encoder", default="tiny"),
    "image_encoder": Slot(kind="encoder", default=None),
    "reducers": Slot(kind="reducer", default=(), several=True, changeable=True),
    "visual_tokenizer": Slot(kind="tokenizer", default="linear"),
    "path": Slot(kind="path", default="slowfast", changeable=True),
    "time": Slot(kind="time", default=None, in_processor=True),
}
"""By the name of the field in configurations and recipes, in the order in which data flows."""


def model_slots() -> dict[str, Slot]:
    """The slots that a model fills itself."""
    return {name: slot for name, slot in SLOTS.items() if not slot.in_processor}


def stages_of(config: Any) -> dict[str, Any]:
    """The stages that a model's configuration or a recipe's model names, by slot; the defaults where it names none."""
    return {name: getattr(config, name, slot.default) for name, slot in model_slots().items()}


def changed(stages: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Stages with some replaced.

    Args:
        stages: by slot.
        changes: by slot; None leaves what is there.

    Raises:
        ConfigError: for a slot that does not exist or cannot be changed in a trained model.
    """
    can = [name for name, slot in SLOTS.items() if slot.changeable]
    for name in changes:
        if name not in can:
            raise ConfigError(f"stage {name!r} cannot be changed in a trained model; {closest(name, can)}")
    new = {name: SLOTS[name].described(value) for name, value in changes.items() if value is not None}
    return {**stages, **new}


def build(stages: Mapping[str, Any], width: int, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The parts that fill a model's slots, a list where a slot takes several.

    Args:
        stages: by slot.
        width: the LLM's.
        kept: parts that are there already, by slot; only the other slots are built.

    Raises:
        ConfigError: if a part does not fit.
    """
    parts: dict[str, Any] = dict(kept or {})
    context: dict[str, Any] = {"width": width, "out_width": width}
    for name, slot in model_slots().items():
        if name not in parts:
            filled = stages.get(name, slot.default)
            if slot.several:
                parts[name] = [registry.build(slot.kind, part, **context) for part in filled or ()]
            else:
                parts[name] = None if filled is None else registry.build(slot.kind, filled, **context)
        if name == "encoder":
            context |= {"in_width": parts[name].width, "grid": parts[name].grid}
    return parts


@dataclass(frozen=True, kw_only=True)
class StageNames:
    """The stages of a model that a recipe trains, by slot, as text."""

    encoder: str = "tiny"
    reducers: tuple[str, ...] = ()
    visual_tokenizer: str = "linear"
    path: str = "slowfast"
    time: str = "tokens"
    """How times are written: LITA's time tokens, text, or text that also stands before each frame (interleaved)."""


@dataclass(frozen=True, kw_only=True)
class StageChanges:
    """Stages in place of a model's own, as flags of every command that asks a model."""

    reducer: tuple[str, ...] | None = None
    """token reducers in place of the model's own, such as fastervlm:keep=8."""
    path: str | None = None
    """path in place of the model's own, such as slowfast:mode=temporal."""

    @property
    def by_slot(self) -> dict[str, Any]:
        """What is given, by slot: arguments of `VideoQA.with_stages` and `VideoQA.from_pretrained`."""
        given = {"reducers": None if self.reducer is None else list(self.reducer), "path": self.path}
        return {name: value for name, value in given.items() if value is not None}


NO_CHANGES = StageChanges()
"""The model as it is."""
