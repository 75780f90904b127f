"""Aligns the projector with the LLM's own words, without a pass through the LLM.

    features of a frame ── projector ── tokens ────────────────────┐                   ┌─ softmax: which names are there
    names of things ── word embeddings, less what they all share ──┴─ `word_likeness` ─┴─ sigmoid: is this name there

What a frame shows has a name, and the LLM has embeddings of its words. The tokens of a frame learn to point at the
names of what can be seen in their places, and at no other; nobody says where. The LLM then finds visual tokens that
resemble words which it knows.

F frames, N patches, C encoder width, W names, D LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import VisualTokenizer
from mmllm.modeling.word_embeddings import mean_embeddings
from mmllm.modeling.word_likeness import word_likeness
from mmllm.registry import register
from mmllm.runtime import processes
from mmllm.tokens import VisualTokens
from mmllm.train.fitting import fit, trained_model
from mmllm.train.named_frames import stacked
from mmllm.train.schedule import TrainingSchedule
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class WordAlignmentTraining(TrainingSchedule):
    """Settings of the alignment; a row is a video with the names of what its frames show."""

    max_steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    sigmoid_weight: float = 0.25
    """Weight of the loss of each name by itself, beside that of the names against each other. The second learns faster;
    the first also says that nothing is there."""
    feature_dropout: float = 0.0
    """Share of a frame's features that are left out at random, the same ones in all of its patches."""
    first_scale: float = 10.0
    """Factor of the cosines at the start of training; it is learned."""
    first_bias: float = -6.0
    """What is added to them before the sigmoid at the start: few of all names are in a frame. It is learned, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.first_scale > 0, self, "first_scale", "above zero")
        require(self.sigmoid_weight >= 0, self, "sigmoid_weight", "zero or more")
        require(0 <= self.feature_dropout < 1, self, "feature_dropout", "from 0 to below 1")

    @property
    def videos(self) -> int:
        """Number of videos that the training uses, in all processes together."""
        return self.max_steps * self.batch_size * self.gradient_accumulation_steps * processes.count()


@register("training", "word_alignment", config=WordAlignmentTraining)
class WordAlignmentStage(TrainingStage):
    """Trains the projector to point at the LLM's words for what a frame shows; encoder and LLM are not trained."""

    folder: ClassVar[str] = "word_alignment"
    weights: ClassVar[str] = "projector.safetensors"
    goes_first: ClassVar[bool] = True

    def __init__(self, config: WordAlignmentTraining) -> None:
        self.config = config

    def check(self, model: Any) -> None:
        """Checks that features can be kept and that the projector has something to learn."""
        if model.encoder_stage is not None or model.encoder_reads_question:
            raise ConfigError("the stage word_alignment needs features that are kept: an encoder without stages inside")
        projector = model.visual_tokenizer
        asked_throughout = projector.reads_question and not projector.question_comes_last
        if asked_throughout or not any(True for _ in projector.parameters()):
            name = projector.registered_name
            raise ConfigError(
                f"the stage word_alignment trains a projector with weights, from frames alone, not {name!r}"
            )

    def part(self, model: Any) -> nn.Module:
        """Returns the projector."""
        return model.visual_tokenizer

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains the projector; see `TrainingStage`."""
        config = self.config
        videos = run.named_frames(config.videos)
        table = run.model.get_input_embeddings()
        words = mean_embeddings(
            lambda ids: table(ids.to(table.weight.device)).cpu(), run.processor.tokenizer, videos.names
        )
        trainer = fit(
            self._pointing(run.model, words),
            videos,
            stacked,
            config,
            folder,
            what="align the projector with words",
            seed=run.seed,
            report_to=run.report_to,
            heads=("scale", "bias"),
        )
        whole = trained_model(trainer, lambda: self._pointing(run.build(), words))
        if whole is not None:
            run.model.visual_tokenizer = whole.visual_tokenizer
        return run.model

    def _pointing(self, model: Any, words: Tensor) -> WordPointing:
        encoder = model.encoder
        return WordPointing(model.visual_tokenizer, words, encoder.grid, self.config, class_count=encoder.class_count)


class WordPointing(nn.Module):
    """The projector with a loss: the tokens of a frame point at the names of what the frame shows."""

    def __init__(
        self,
        visual_tokenizer: VisualTokenizer,
        words: Tensor,
        grid: Any,
        config: WordAlignmentTraining,
        *,
        class_count: int = 0,
    ) -> None:
        super().__init__()
        self.visual_tokenizer, self.grid = visual_tokenizer, grid
        self.register_buffer("words", directions(words), persistent=False)
        self.words: Tensor
        self.scale = nn.Parameter(torch.tensor(math.log(config.first_scale)))
        self.bias = nn.Parameter(torch.tensor(config.first_bias))
        self.sigmoid_weight = config.sigmoid_weight
        self.class_count = class_count
        self.dropout = nn.Dropout(config.feature_dropout)

    def forward(self, features: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """Returns the `loss`: of the softmax the mean over frames that show a name, of the sigmoid that over all.

        Args:
            features: F N C.
            shown: bool, F W.
        """
        logits = self.likeness(self.thinned(features)) * self.scale.exp()
        targets = shown.to(logits.dtype)
        count = targets.sum(-1)  # F
        among = -(logits.log_softmax(-1) * targets).sum(-1) / count.clamp(min=1)
        alone = nn.functional.binary_cross_entropy_with_logits(logits + self.bias, targets, reduction="none").sum(-1)
        return {"loss": among.sum() / (count > 0).sum().clamp(min=1) + self.sigmoid_weight * alone.mean()}

    def thinned(self, features: Tensor) -> Tensor:
        """Features F N C, without some at random in training; scores of classes, the last channels, stay."""
        width = features.shape[-1] - self.class_count
        kept = self.dropout(features.new_ones(len(features), 1, width))
        return torch.cat([features[..., :width] * kept, features[..., width:]], dim=-1)

    def likeness(self, features: Tensor) -> Tensor:
        """F W: how much each frame resembles each name."""
        tokens = self.visual_tokenizer.unasked(VisualTokens(features=features.unsqueeze(0), grid=self.grid)).features[0]
        return word_likeness(tokens, self.words)


def directions(words: Tensor) -> Tensor:
    """W D of length 1: embeddings without what all of them share."""
    return nn.functional.normalize(words - words.mean(0), dim=-1)
