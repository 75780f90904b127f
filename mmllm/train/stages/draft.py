"""Trains a draft beside its frozen target: on the answers of the target, or before that on those of the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmllm.decoding.trained_draft import TargetRows, TrainedDraft
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.registry import register
from mmllm.train.fitting import fit, trained_model
from mmllm.train.packing import RowCollator
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class DraftTraining(RowTraining):
    """Settings of a draft's training. A row is a question with its answer."""

    answers: Literal["target", "data"] = "target"
    """Whose answers the draft learns: the target's own greedy ones, or those of the data."""
    max_steps: int = 600
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    questions_per_video: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.questions_per_video == 1, self, "questions_per_video", "1: a draft continues one text")


@dataclass(frozen=True, kw_only=True)
class DraftPretraining(DraftTraining):
    """Settings of a first training, on the answers of the data."""

    answers: Literal["target", "data"] = "data"


class BesideTarget(nn.Module):
    """A draft with its target, which is no part: it is neither trained nor saved.

    Args:
        draft: is trained.
        target: a model of mmllm.
    """

    accepts_loss_kwargs = False  # a draft's loss is a mean over its own batch

    def __init__(self, draft: TrainedDraft, target: Any) -> None:
        super().__init__()
        self.draft = draft
        self._target = (target.requires_grad_(False).eval(),)

    @property
    def target(self) -> Any:
        """The target."""
        return self._target[0]

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The weights, shared ones under their first name only, as files of safetensors need it."""
        names: dict[int, str] = {}
        whole = super().state_dict(*arguments, **options)
        return {name: weight for name, weight in whole.items() if names.setdefault(weight.data_ptr(), name) == name}

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """The draft's loss on rows as `RowCollator` makes them."""
        return {"loss": self.draft.loss(TargetRows.of_batch(self.target, batch))}


@register("training", "draft", config=DraftTraining)
class DraftStage(TrainingStage):
    """Trains a draft on the answers of its frozen target (`mmllm train-draft`)."""

    folder: ClassVar[str] = "training"
    weights: ClassVar[str] = "draft.safetensors"

    def __init__(self, config: DraftTraining) -> None:
        self.config = config
        self.rows_needed = config.rows

    def check(self, model: Any) -> None:
        """Checks that the model is a draft with its target."""
        if not isinstance(model, BesideTarget):
            raise ConfigError(f"the stage {self.registered_name!r} trains no model, but a draft beside one: "
                              "mmllm train-draft")  # fmt: skip
        model.draft.check(model.target)

    def part(self, model: Any) -> nn.Module:
        """Returns the draft."""
        return model.draft

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the draft; see `TrainingStage`."""
        target = run.model.target
        keep = target.encoder_stage is None and not target.encoder_reads_question
        rows = run.rows(self.config, keep_features=keep)
        trainer = fit(
            run.model,
            rows.dataset,
            RowCollator(pad_token_id=run.processor.tokenizer.pad_token_id),
            self.config,
            folder,
            what=f"train {run.model.draft.registered_name}",
            seed=run.seed,
            report_to=run.report_to,
            workers=rows.workers,
        )
        return trained_model(trainer, run.build)


@register("training", "draft_pretraining", config=DraftPretraining)
class DraftPretrainingStage(DraftStage):
    """Trains a draft on the answers of the data, before it learns those of its target (`mmllm train-draft`)."""

    folder: ClassVar[str] = "pretraining"
    goes_first: ClassVar[bool] = True
