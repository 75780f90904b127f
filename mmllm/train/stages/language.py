"""Training of projector and LLM on the run's questions: all weights, or low-rank adapters in the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mmllm.checkpoints.adapters import with_adapters
from mmllm.fields import require
from mmllm.registry import register
from mmllm.train.fitting import fit, trained_model
from mmllm.train.freezing import check_parts, freeze
from mmllm.train.packing import RowCollator
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class LanguageTraining(RowTraining):
    """How projector and LLM are trained. A row is a video with several of its questions."""

    frozen: tuple[str, ...] = ("encoder",)
    """Parts of the model that are not trained: encoder, reducers, visual_tokenizer, path, grounding, language_model."""
    keep_features: bool = True
    """Keep features of a frozen encoder on disk; False to encode each video whenever it is drawn."""
    lora_rank: int = 0
    """Rank of low-rank adapters in the LLM (peft), which is then frozen itself; 0 trains all of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lora_rank >= 0, self, "lora_rank", "zero or more")


@register("training", "language", config=LanguageTraining)
class LanguageStage(TrainingStage):
    """Trains projector and LLM, and whatever else is not frozen, to answer the run's questions."""

    folder: ClassVar[str] = "language"
    weights: ClassVar[str] = "model.safetensors"

    def __init__(self, config: LanguageTraining, *, merge: bool = True) -> None:
        """`merge` folds adapters into the weights; otherwise the model is returned with them."""
        self.config = config
        self.merge = merge
        self.rows_needed = config.rows

    def check(self, model: Any) -> None:
        """Refuses `frozen` parts that the model does not have."""
        check_parts(model, self.config.frozen, "LanguageTraining.frozen")

    def part(self, model: Any) -> nn.Module:
        """The whole model."""
        return model

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains what is not frozen; see `TrainingStage`."""
        config = self.config
        keep = config.keep_features and "encoder" in config.frozen and run.model.encoder_stage is None
        rows = run.source.rows(run, config, keep_features=keep)
        torch.manual_seed(run.seed)  # of the adapters' first weights
        trainer = fit(
            self._prepared(run.model),
            rows.dataset,
            RowCollator(pad_token_id=run.processor.tokenizer.pad_token_id),
            config,
            folder,
            what="train projector and LLM",
            seed=run.seed,
            report_to=run.report_to,
            workers=rows.workers,
        )
        trained = trained_model(trainer, lambda: self._prepared(run.build()))
        return trained.merge_and_unload() if trained is not None and config.lora_rank and self.merge else trained

    def _prepared(self, model: Any) -> Any:
        """The model with its parts frozen and, if it gets some, adapters in its LLM."""
        freeze(model, self.config.frozen)
        return with_adapters(model, self.config.lora_rank) if self.config.lora_rank else model
