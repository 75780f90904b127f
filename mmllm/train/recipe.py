"""Recipe: what to train, on what, and the stages of the training in their order.

A file (`--config file.yaml`) changes fields of a recipe, flags change them once more; unknown fields are refused. A
stage is changed by its name, as if it were a field: `language: {max_steps: 500}`; null leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import closest, decode, merged, require, to_mapping
from mmllm.interfaces import LlmStage
from mmllm.train.data import DataConfig
from mmllm.train.model_config import ModelConfig

KIND = "training"
"""Of the stages, in the registry."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a training run depends on; saved with the run."""

    name: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: tuple[Any, ...]
    """Configurations of the stages, such as `(FrameEncoderTraining(), LanguageTraining())`, in order."""

    def __post_init__(self) -> None:
        require(bool(self.stages), self, "stages", f"one at least; known: {', '.join(registry.parts(KIND))}")
        require(len(set(self.names)) == len(self.stages), self, "stages", "each at most once")
        for reducer in self.model.reducers:
            config = registry.config_of("reducer", reducer)
            part = registry.find("reducer", registry.name_of("reducer", config)).cls
            for name, stage in zip(self.names, self.stages, strict=True):
                alone = issubclass(part, LlmStage) and part.depends_on_question
                if alone and getattr(stage, "questions_per_video", 1) > 1:
                    raise ConfigError(
                        f"{reducer} decides for each question which tokens it needs, so questions cannot share a row: "
                        f"set {name}.questions_per_video = 1 (it is {stage.questions_per_video}) in a --config file"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        return tuple(registry.name_of(KIND, stage) for stage in self.stages)

    def stage(self, name: str) -> Any:
        """The configuration of the stage of that name.

        Raises:
            ConfigError: if the recipe has none.
        """
        if name not in self.names:
            raise ConfigError(f"the recipe {self.name!r} has no stage {name!r}; {closest(name, self.names)}")
        return self.stages[self.names.index(name)]

    def with_stage(self, name: str, **changes: Any) -> Recipe:
        """The recipe with some fields of a stage changed.

        Raises:
            ConfigError: if the recipe has no such stage, or the stage no such field.
        """
        self.stage(name)
        return self.changed({name: changes})

    def without(self, name: str) -> Recipe:
        """The recipe without the stage of that name, if it has one."""
        return self.changed({name: None})

    def changed(self, changes: Mapping[str, Any], where: str = "") -> Recipe:
        """The recipe with some fields changed, as a file does it.

        Args:
            changes: fields, nested ones as mappings. A key that names a stage changes that stage: a mapping of its
                fields, a whole configuration, or None to leave it out. One that the recipe does not have is added in
                front or at the end, as suits the stage. `stages` is a list of names: which stages there are, in order.
            where: where the changes come from, for messages.

        Raises:
            ConfigError: on a field or stage that does not exist, or a value that is not allowed.
        """
        where = where or type(self).__name__
        allowed = {item.name for item in fields(self)} | set(registry.parts(KIND))
        for key in changes:
            if key not in allowed:
                raise ConfigError(f"{where} has no field {key!r}; {closest(str(key), allowed)}")
        # step 1: which stages there are, in which order
        before = dict(zip(self.names, self.stages, strict=True))
        stages = before
        if "stages" in changes:
            names = decode(tuple[str, ...], changes["stages"], f"{where}.stages")
            stages = {name: before.get(name) or registry.find(KIND, name).config() for name in names}
            if len(stages) < len(names):
                raise ConfigError(f"{where}.stages = {names}: must have each stage at most once")
        # step 2: the fields of each stage, and all other fields
        for name in registry.parts(KIND):
            if name in changes:
                stages = _with(stages, name, changes[name], f"{where}.{name}")
        hints = get_type_hints(type(self))
        values: dict[str, Any] = {"stages": tuple(stages.values())}
        for name in [key for key in ("name", "seed", "data", "model") if key in changes]:
            current, value = getattr(self, name), changes[name]
            nested = is_dataclass(current) and isinstance(value, Mapping)
            place = f"{where}.{name}"
            values[name] = merged(current, value, place) if nested else decode(hints[name], value, place)
        return replace(self, **values)

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as JSON values, which `changed` reads: the names of the stages, and the fields of each."""
        plain = {key: value for key, value in to_mapping(self).items() if key != "stages"}
        by_name = {name: to_mapping(stage) for name, stage in zip(self.names, self.stages, strict=True)}
        return {**plain, "stages": list(self.names), **by_name}


def _with(stages: Mapping[str, Any], name: str, change: Any, where: str) -> dict[str, Any]:
    """The stages with one of them changed, left out or added."""
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
    """What `Recipe.to_mapping` has saved, in today's form.

    Older runs have the two fields `frame_encoder` and `language`, null for one left out, and no `stages`.
    """
    if "stages" in saved:
        return dict(saved)
    names = [name for name in ("frame_encoder", "language") if saved.get(name) is not None]
    return {
        **{key: value for key, value in saved.items() if key != "frame_encoder" or value is not None},
        "stages": names,
    }
