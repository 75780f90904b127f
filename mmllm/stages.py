"""The stages of a model, described once for configurations, recipes, commands, the demo and `with_stages`.

    frames -> encoder -> reducers -> visual_tokenizer -> path -> LLM with decoder_stages inside
              (reducers act inside or behind the encoder, behind the visual_tokenizer, or inside the LLM)
    context: what the LLM still sees of what it has read
    sound  -> audio_encoder -> audio_projector, between the frames; or a path that reads sound itself
    time: how times are written, in the processor

A new kind of part needs an entry in `mmllm.registry.KINDS`, a base class in `mmllm.interfaces`, and a slot here, with a
field of `StageNames` for recipes and of `StageChanges` for the command line. Parts that extend `LlmStage` then work
inside the LLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tyro.conf import UseAppendAction

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import closest, with_current_names

Description = str | dict[str, Any]
"""A part as text (`hired:ratio=0.2`) or as a mapping with a `name`."""


def one_or_more(parts: Any) -> list[Any]:
    """Parts that are given as one, as several, or as None for none. Text and a mapping are one part."""
    if parts is None:
        return []
    is_one = isinstance(parts, (str, Mapping)) or not isinstance(parts, Iterable)
    return [parts] if is_one else list(parts)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place in a model for one part, or for several parts in order."""

    kind: str
    """Its kind in `mmllm.registry`."""
    default: Any
    """The part of a model that names none for this slot."""
    several: bool = False
    """Whether it takes a list of parts."""
    changeable: bool = False
    """Whether a trained model can be used with another part here. Otherwise only settings of its own part that need no
    new weights can be changed: those that the part names in `changeable_settings`."""
    in_processor: bool = False
    """Whether the processor has the part, and not the model."""

    def described(self, value: Any) -> Any:
        """The parts of the slot as JSON values, with every setting; None stays None.

        A slot for several parts gives a list, also of one part that is given by itself.

        Raises:
            ConfigError: on an unknown part or setting, or a value that is not allowed.
        """
        if self.several:
            return [self._described(part) for part in one_or_more(value)]
        return None if value is None else self._described(value)

    def _described(self, part: Any) -> dict[str, Any]:
        return registry.describe(self.kind, registry.config_of(self.kind, part))


SLOTS: dict[str, Slot] = {
    "encoder": Slot(kind="encoder", default="tiny"),
    "image_encoder": Slot(kind="encoder", default=None),
    "audio_encoder": Slot(kind="audio_encoder", default=None),
    "audio_projector": Slot(kind="audio_projector", default=None),
    "reducers": Slot(kind="reducer", default=(), several=True, changeable=True),
    "visual_tokenizer": Slot(kind="tokenizer", default="linear"),
    "path": Slot(kind="path", default="slowfast", changeable=True),
    "decoder_stages": Slot(kind="decoder_stage", default=(), several=True, changeable=True),
    "context": Slot(kind="context", default=(), several=True, changeable=True),
    "time": Slot(kind="time", default=None, in_processor=True),
}
"""Name of the field in configurations and recipes -> slot, in the order in which data flows."""


def model_slots() -> dict[str, Slot]:
    """The slots whose parts the model has itself, by name."""
    return {name: slot for name, slot in SLOTS.items() if not slot.in_processor}


def stages_of(config: Any) -> dict[str, Any]:
    """The stages of a model's configuration or a recipe's model, by slot. A slot without a stage gets its default."""
    return {name: getattr(config, name, slot.default) for name, slot in model_slots().items()}


def changed(stages: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Stages with some replaced.

    Args:
        stages: by slot.
        changes: by slot; None changes nothing.

    A slot that is not `changeable` keeps its part; some parts take other values of their `changeable_settings`, such as
    `mqt:tokens=16`, and keep all other settings. So does a path that has such settings, such as `tdc:cuts=12`.

    Raises:
        ConfigError: for a slot that does not exist or cannot be changed in a trained model, or a setting that needs
            other weights.
    """
    new: dict[str, Any] = {}
    for name, value in changes.items():
        slot = SLOTS.get(name)
        if slot is None or slot.in_processor:
            known = [slot_name for slot_name, slot in SLOTS.items() if not slot.in_processor]
            raise ConfigError(f"stage {name!r} cannot be changed in a trained model; {closest(name, known)}")
        if value is not None:
            own = stages.get(name, slot.default)
            keeps = not slot.changeable or takes_settings(slot, own, value)
            new[name] = _with_settings(name, slot, own, value) if keeps else slot.described(value)
    return {**stages, **new}


def takes_settings(slot: Slot, own: Any, change: Any) -> bool:
    """Whether a change names a slot's own part, which has weights and takes other values of some settings."""
    if slot.several or own is None or not (isinstance(change, (str, Mapping))):
        return False
    name = registry.named(slot.kind, own if isinstance(own, (str, Mapping)) else slot.described(own))[0]
    return name == registry.named(slot.kind, change)[0] and bool(registry.find(slot.kind, name).cls.changeable_settings)  # type: ignore[attr-defined]


def _with_settings(name: str, slot: Slot, own: Any, change: Any) -> dict[str, Any]:
    """A slot's own part with other values of its changeable settings, as JSON values with every setting."""
    given = change if isinstance(change, (str, Mapping)) else slot.described(change)
    part, fields = registry.named(slot.kind, given)
    before = slot.described(own)
    if before is None or before["name"] != part:
        registry.find(slot.kind, part)
        has = "none" if before is None else repr(before["name"])
        raise ConfigError(f"stage {name!r} cannot be changed in a trained model: it has {has}, not {part!r}")
    registered: Any = registry.find(slot.kind, part)
    fields = with_current_names(registered.config, fields, part)
    after = slot.described({**before, **fields})
    allowed = registered.cls.changeable_settings
    for field in fields:
        if after[field] != before[field] and field not in allowed:
            others = f"only {', '.join(allowed)} can be changed" if allowed else "none of its settings can be changed"
            raise ConfigError(
                f"stage {name!r}: {part}.{field} = {after[field]}, and the trained model has {before[field]}; {others}"
            )
    return after


def build(
    stages: Mapping[str, Any], width: int, existing: Mapping[str, Any] | None = None, decoder: Any = None
) -> dict[str, Any]:
    """The parts of a model, by slot: a list for a slot that takes several.

    Args:
        stages: by slot.
        width: of the LLM.
        existing: parts that are built already, by slot; only the other slots are built.
        decoder: configuration of the LLM, for parts with weights inside it.

    Raises:
        ConfigError: if a part does not fit.
    """
    parts: dict[str, Any] = dict(existing or {})
    context: dict[str, Any] = {"width": width, "out_width": width, "audio_width": None, "decoder": decoder}
    for name, slot in model_slots().items():
        if name not in parts:
            stage = stages.get(name, slot.default)
            if slot.several:
                parts[name] = [registry.build(slot.kind, part, **context) for part in one_or_more(stage)]
            else:
                parts[name] = None if stage is None else registry.build(slot.kind, stage, **context)
        if name == "encoder":
            encoder = parts[name]
            context |= {"in_width": encoder.width, "grid": encoder.grid, "tower_widths": encoder.tower_widths}
            context |= {"class_count": encoder.class_count}
        if name == "audio_encoder" and parts[name] is not None:
            context |= {"audio_width": parts[name].width}
    return parts


def needs_frame_size(stages: Mapping[str, Any]) -> bool:
    """Whether the processor has to give the size of frames before they were padded.

    So it is if the projector leaves padding out, and the encoder sees frames that are padded.
    """
    tokenizer = stages.get("visual_tokenizer", SLOTS["visual_tokenizer"].default)
    name = registry.name_of("tokenizer", registry.config_of("tokenizer", tokenizer))
    encoder = registry.config_of("encoder", stages.get("encoder", SLOTS["encoder"].default))
    return bool(registry.find("tokenizer", name).cls.needs_frame_size) and encoder.frames.fit == "pad"  # type: ignore[attr-defined]


def question_reader(stages: Mapping[str, Any]) -> Any:
    """The `QuestionReaderConfig` of the parts that read questions; None if no part does.

    Args:
        stages: by slot, as text, mappings or configurations.

    Raises:
        ConfigError: if two parts read questions in different ways; a processor writes one kind of ids.
    """
    readers: list[tuple[str, Any]] = []
    for name, slot in SLOTS.items():
        stage = stages.get(name, slot.default)
        for part in one_or_more(stage):
            config = registry.config_of(slot.kind, part)
            if (reader := getattr(config, "question_reader", None)) is not None:
                readers.append((f"{name} {registry.name_of(slot.kind, config)!r}", reader))
    if not readers:
        return None
    first, chosen = readers[0]
    for name, reader in readers:
        if reader != chosen:
            raise ConfigError(f"{first} and {name} read questions in different ways: {chosen} and {reader}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class StageNames:
    """The stages of a recipe's model, by slot, as text."""

    encoder: str = "tiny"
    audio_encoder: str | None = None
    """Reads the sound of videos; None for a model that does not hear."""
    audio_projector: str | None = None
    """Puts audio tokens between the frames; None for a model that does not hear, or whose path reads sound itself."""
    reducers: tuple[str, ...] = ()
    visual_tokenizer: str = "linear"
    path: str = "slowfast"
    decoder_stages: tuple[str, ...] = ()
    """Parts with or without weights inside the LLM."""
    context: tuple[str, ...] = ()
    """Policies of the LLM's cache with which it is trained."""
    time: str = "tokens"
    """How times are written: LITA's time tokens, text, or text that also stands before each frame (interleaved)."""


@dataclass(frozen=True, kw_only=True)
class StageChanges:
    """Stages that replace a model's own, as flags of every command that asks a model."""

    reducer: tuple[str, ...] | None = None
    """token reducers in place of the model's own, such as fastervlm:keep=8."""
    path: str | None = None
    """path in place of the model's own, such as slowfast:mode=temporal."""
    tokenizer: str | None = None
    """other settings of the model's own projector that need no new weights, such as mqt:tokens=16."""
    encoder: str | None = None
    """other settings of the model's own encoder that need no new weights, such as flextok:tokens=16."""
    decoder_stage: tuple[str, ...] | None = None
    """stages inside the LLM in place of the model's own; one with weights keeps those that it has been trained with."""
    context: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """what the LLM still sees of what it has read, such as h2o:heavy=0.1,recent=0.1; by default everything."""

    @property
    def by_slot(self) -> dict[str, Any]:
        """The given changes, by slot: arguments of `VideoQA.with_stages` and `VideoQA.from_pretrained`."""
        given = {
            "encoder": self.encoder,
            "reducers": None if self.reducer is None else list(self.reducer),
            "visual_tokenizer": self.tokenizer,
            "path": self.path,
            "decoder_stages": None if self.decoder_stage is None else list(self.decoder_stage),
            "context": [policy for given in self.context for policy in given] if self.context else None,
        }
        return {name: value for name, value in given.items() if value is not None}


NO_CHANGES = StageChanges()
"""Leaves the model as it is."""
