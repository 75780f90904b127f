"""Recipe: the model, the data and the training stages of a run.

A file (`--config file.yaml`) changes fields of a recipe; flags override the file. Unknown fields are errors. The name
of a stage works like a field: `language: {max_steps: 500}` changes the stage, `language: null` removes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import closest, decode, merged, require, require_seed, to_mapping
from mmllm.interfaces import LlmStage
from mmllm.stages import question_reader, stages_of
from mmllm.train.data import DataConfig
from mmllm.train.model_config import ModelConfig
from mmllm.train.record import with_renamed_keys

KIND = "training"
"""The registry's kind for training stages."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run; saved with the run."""

    name: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: tuple[Any, ...]
    """Configurations of the stages, in order, such as `(FrameEncoderTraining(), LanguageTraining())`."""
    adapter_only: bool = False
    """Save low-rank adapters and what else was trained, in `adapter/`, and the names of the pretrained LLM and encoder
    in place of their weights; False saves the whole model, in `model/`."""

    def __post_init__(self) -> None:
        require_seed(self.seed, "Recipe.seed")
        require(bool(self.stages), self, "stages", f"at least one of: {', '.join(registry.parts(KIND))}")
        require(len(set(self.names)) == len(self.stages), self, "stages", "a list with each stage at most once")
        if self.data.own_talk and self.model.language_model is None:
            raise ConfigError(
                "data.own_talk needs a pretrained language_model: another one has no words of its own yet"
            )
        if self.adapter_only:
            named = self.model.language_model and self.model.encoder_weights
            adapted = getattr(self.stages[-1], "lora_rank", 0) > 0
            needs = "False without a language_model, encoder_weights and a last stage with lora_rank"
            require(bool(named) and adapted, self, "adapter_only", needs)
        has_text = self.data.talk > 0 or self.data.mixture is not None
        for name, stage in zip(self.names, self.stages, strict=True):
            if getattr(stage, "base_kl_weight", 0) and not has_text:
                raise ConfigError(f"{name}.base_kl_weight needs rows without a video: set data.talk above 0")
        reads = question_reader(stages_of(self.model)) is not None
        for name, stage in zip(self.names, self.stages, strict=True):
            if reads and getattr(stage, "questions_per_video", 1) > 1:
                raise ConfigError(
                    "a part of the model reads the question before the LLM does, so questions cannot share a row: "
                    f"set {name}.questions_per_video = 1 (it is {stage.questions_per_video}) in a --config file"
                )
        for policy in self.model.context:
            if registry.build("context", policy).needs_cache:
                raise ConfigError(
                    f"model.context: {policy} removes or chooses keys of a cache, and training has none: give it when "
                    "the model is asked (--context)"
                )
        inside = [("reducer", part) for part in self.model.reducers]
        inside += [("decoder_stage", part) for part in self.model.decoder_stages]
        for kind, described in inside:
            config = registry.config_of(kind, described)
            part = registry.find(kind, registry.name_of(kind, config)).cls
            for name, stage in zip(self.names, self.stages, strict=True):
                needs_own_row = issubclass(part, LlmStage) and part.depends_on_question
                if needs_own_row and getattr(stage, "questions_per_video", 1) > 1:
                    raise ConfigError(
                        f"{described} selects tokens for each question separately, so questions cannot share a row: "
                        f"set {name}.questions_per_video = 1 (it is {stage.questions_per_video}) in a --config file"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        return tuple(registry.name_of(KIND, stage) for stage in self.stages)

    def stage(self, name: str) -> Any:
        """Returns the configuration of the stage with this name.

        Raises:
            ConfigError: if the recipe has no such stage.
        """
        if name not in self.names:
            raise ConfigError(f"the recipe {self.name!r} has no stage {name!r}; {closest(name, self.names)}")
        return self.stages[self.names.index(name)]

    def with_stage(self, name: str, **changes: Any) -> Recipe:
        """Returns the recipe with some fields of a stage changed.

        Raises:
            ConfigError: if the recipe has no such stage, or if the stage has no such field.
        """
        self.stage(name)
        return self.changed({name: changes})

    def without(self, name: str) -> Recipe:
        """Returns the recipe without the stage of this name, if it has this stage."""
        return self.changed({name: None})

    def changed(self, changes: Mapping[str, Any], where: str = "") -> Recipe:
        """Returns the recipe with some fields changed, in the form of a config file.

        Args:
            changes: field -> new value; nested fields are mappings. A key may also be the name of a stage. Its value is
                a mapping of fields, a whole configuration, or None to remove the stage. A stage that the recipe does
                not have is added at the front if its class has `goes_first`, otherwise at the end. `stages` is a list
                of stage names: the recipe then has exactly these stages, in this order.
            where: the source of the changes, for messages.

        Raises:
            ConfigError: if a field or stage does not exist, or if a value is not allowed.
        """
        where = where or type(self).__name__
        allowed = {item.name for item in fields(self)} | set(registry.parts(KIND))
        for key in changes:
            if key not in allowed:
                raise ConfigError(f"{where} has no field {key!r}; {closest(str(key), allowed)}")
        # step 1: take the stages and their order from `stages`; a new one has its default configuration
        before = dict(zip(self.names, self.stages, strict=True))
        stages = before
        if "stages" in changes:
            names = decode(tuple[str, ...], changes["stages"], f"{where}.stages")
            stages = {name: before.get(name) or registry.find(KIND, name).config() for name in names}
            if len(stages) < len(names):
                raise ConfigError(f"{where}.stages = {names}: must have each stage at most once")
        # step 2: change the fields of each stage
        for name in registry.parts(KIND):
            if name in changes:
                stages = _with(stages, name, changes[name], f"{where}.{name}")
        # step 3: change all other fields
        hints = get_type_hints(type(self))
        values: dict[str, Any] = {"stages": tuple(stages.values())}
        for name in [key for key in ("name", "seed", "data", "model", "adapter_only") if key in changes]:
            current, value = getattr(self, name), changes[name]
            nested = is_dataclass(current) and isinstance(value, Mapping)
            place = f"{where}.{name}"
            values[name] = merged(current, value, place) if nested else decode(hints[name], value, place)
        return replace(self, **values)

    def to_mapping(self) -> dict[str, Any]:
        """Returns the recipe as JSON values that `changed` accepts: names of stages, and a mapping for each."""
        plain = {key: value for key, value in to_mapping(self).items() if key != "stages"}
        by_name = {name: to_mapping(stage) for name, stage in zip(self.names, self.stages, strict=True)}
        return {**plain, "stages": list(self.names), **by_name}


def _with(stages: Mapping[str, Any], name: str, change: Any, where: str) -> dict[str, Any]:
    """Returns the stages with one stage changed, removed or added."""
    part: Any = registry.find(KIND, name)
    before = stages.get(name)
    if isinstance(change, Mapping):
        config = merged(before or part.config(), change, where)
    else:
        config = decode(part.config | None, change, where)
    if config is None:
        return {key: value for key, value in stages.items() if key != name}
    if before is not None:
        return {**stages, name: config}
    return {name: config, **stages} if part.cls.goes_first else {**stages, name: config}


def normalised(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the saved output of `Recipe.to_mapping` in the current form.

    Older runs have no `stages`. They have the fields `frame_encoder` and `language`, with null for a removed stage. A
    field that is newer than the run has its default.
    """
    saved = {"adapter_only": False, **with_renamed_keys(saved)}
    if "stages" not in saved:
        names = [name for name in ("frame_encoder", "language") if saved.get(name) is not None]
        saved = {key: value for key, value in saved.items() if key != "frame_encoder" or value is not None}
        saved["stages"] = names
    parts: dict[str, Any] = {"data": DataConfig(), "model": ModelConfig()}
    parts |= {name: registry.find(KIND, name).config() for name in saved["stages"] if name in registry.parts(KIND)}
    return {**saved, **{name: _filled(saved[name], to_mapping(part)) for name, part in parts.items() if name in saved}}


def _filled(saved: Any, defaults: Any) -> Any:
    """The saved value, with the defaults that it lacks, at any depth."""
    if not isinstance(saved, Mapping) or not isinstance(defaults, Mapping):
        return saved
    return {**saved, **{key: _filled(saved.get(key, value), value) for key, value in defaults.items()}}
