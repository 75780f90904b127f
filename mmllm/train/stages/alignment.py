"""Trains the projector, and stages with weights inside the LLM; encoder and LLM are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmllm.registry import register
from mmllm.train.stages.language import LanguageStage, LanguageTraining


@dataclass(frozen=True, kw_only=True)
class AlignmentTraining(LanguageTraining):
    """Settings of a first stage on the run's questions, as LLaVA's systems have it: the encoder and the LLM stay."""

    frozen: tuple[str, ...] = ("encoder", "language_model")
    """Parts of the model to freeze."""


@register("training", "alignment", config=AlignmentTraining)
class AlignmentStage(LanguageStage):
    """Trains the projector and stages inside the LLM to answer the run's questions; encoder and LLM are frozen."""

    folder: ClassVar[str] = "alignment"
    goes_first: ClassVar[bool] = True
