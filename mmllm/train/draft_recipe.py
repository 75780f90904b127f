"""DraftRecipe: the draft, its target, the data and the training stages of a run of `mmllm train-draft`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmllm import registry
from mmllm.decoding.draft_files import KIND
from mmllm.fields import from_mapping, merged, require, require_seed, to_mapping
from mmllm.hub.sources import DEFAULT
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.questions import TIME_FAMILIES
from mmllm.train.data import DataConfig
from mmllm.train.stages.draft import DraftPretraining, DraftTraining

_FRESH = SyntheticConfig(seed=11, train_videos=400, val_videos=0, world="basic", families=(*TIME_FAMILIES, "place"))
"""Clips that no recipe trains a model on, of the kind that the packaged model has learned from."""


@dataclass(frozen=True, kw_only=True)
class DraftRecipe:
    """All settings of the training of a draft; saved with the run."""

    draft: Any
    """Configuration of a draft, one of `mmllm list drafts`."""
    target: str = DEFAULT
    """Folder or hub id of the model whose answers are drafted."""
    seed: int = 0
    data: DataConfig = field(default_factory=lambda: DataConfig(synthetic=_FRESH))
    """The questions. The target answers them itself."""
    pretraining: DraftPretraining | None = None
    """A first training on the answers of the data; None for none."""
    training: DraftTraining = field(default_factory=DraftTraining)
    """The training on the target's answers."""

    def __post_init__(self) -> None:
        require_seed(self.seed, "DraftRecipe.seed")
        own = self.data.mixture is None and not self.data.talk
        require(own, self, "data", "questions about videos, without a mixture and without talk")

    @property
    def name(self) -> str:
        """The registered name of the draft."""
        return registry.name_of(KIND, self.draft)

    @property
    def stages(self) -> tuple[DraftTraining, ...]:
        """The configurations of the stages, in order."""
        return (self.training,) if self.pretraining is None else (self.pretraining, self.training)

    def changed(self, changes: Mapping[str, Any], where: str = "") -> DraftRecipe:
        """The recipe with some fields changed, in the form of a config file; nested fields are mappings.

        Raises:
            ConfigError: if a field does not exist, or if a value is not allowed.
        """
        where = where or type(self).__name__
        changes = dict(changes)
        recipe = self
        if "draft" in changes:
            new = changes.pop("draft")
            if isinstance(new, Mapping) and "name" not in new:
                new = merged(self.draft, new, f"{where}.draft")
            recipe = replace(self, draft=registry.config_of(KIND, new))
        if isinstance(changes.get("pretraining"), Mapping) and self.pretraining is None:
            changes["pretraining"] = from_mapping(DraftPretraining, changes["pretraining"], f"{where}.pretraining")
        return merged(recipe, changes, where)

    def to_mapping(self) -> dict[str, Any]:
        """The recipe as JSON values that `changed` accepts."""
        return {**to_mapping(self), "draft": registry.describe(KIND, self.draft)}


def draft_recipe(description: Any) -> DraftRecipe:
    """The recipe of a draft such as `flash:ahead=3`, with the settings of training that its class names.

    Raises:
        ConfigError: for an unknown draft or setting.
    """
    config = registry.config_of(KIND, description)
    cls: Any = registry.find(KIND, registry.name_of(KIND, config)).cls
    defaults = dict(cls.training_defaults)
    return DraftRecipe(
        draft=config,
        training=DraftTraining(**defaults),
        pretraining=DraftPretraining(**defaults) if cls.pretrains else None,
    )
