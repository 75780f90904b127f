"""Settings that all training stages have in common: number of steps, batch size, learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mmllm.fields import require
from mmllm.runtime import processes


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """Settings of one training. Fields have the names of transformers' TrainingArguments where these exist."""

    renamed_fields: ClassVar[dict[str, str]] = {"warmup_share": "warmup_fraction"}
    """Old name -> current name; files with old names can still be read."""

    max_steps: int = 1000
    batch_size: int = 4
    """Rows per step on each device; a row is a video with questions, a dialogue or a scene."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Part of the model (such as decoder_stages) -> its own peak learning rate. With Muon, the rates of the part's
    matrices change by the same factor as `learning_rate` would."""
    matrix_learning_rate: float = 0.0
    """Peak learning rate of the weight matrices, which are then trained with Muon; 0 trains all weights with AdamW."""
    warmup_fraction: float = 0.05
    """The learning rate rises during this fraction of the steps."""
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    bfloat16: bool = False
    """Multiply matrices in bfloat16 on a CPU with instructions for it (AVX512-BF16 or AMX), which is then about twice
    as fast. Other CPUs compute in float32, GPUs always in bfloat16."""
    logging_steps: int = 20
    save_steps: int = 200
    max_bad_steps: int = 10
    """A step without a finite gradient is skipped; so many skipped steps in a row end the training."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
            "max_bad_steps",
        ):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(0 <= self.warmup_fraction < 1, self, "warmup_fraction", "from 0 to below 1")
        require(self.learning_rate > 0, self, "learning_rate", "above zero")
        rates = self.learning_rates.values()
        require(all(rate > 0 for rate in rates), self, "learning_rates", "rates above zero")
        require(self.matrix_learning_rate >= 0, self, "matrix_learning_rate", "zero or more")


@dataclass(frozen=True, kw_only=True)
class RowTraining(TrainingSchedule):
    """Settings of a training on the run's data. A row is a video with several of its questions, or a dialogue."""

    questions_per_video: int = 8
    """At most so many questions share the visual tokens of their video in one row."""
    system_prompt: str | None = None
    """System prompt in training; None takes the model's own prompt, with which it answers."""
    max_text_tokens: int = 2048
    """A dialogue with more text tokens is left out; visual tokens are not counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.questions_per_video >= 1, self, "questions_per_video", "at least 1")
        require(self.max_text_tokens >= 1, self, "max_text_tokens", "at least 1")

    @property
    def readers(self) -> int:
        """How many read rows of their own: the processes, or groups of them that share their rows."""
        return processes.count()

    @property
    def rows(self) -> int:
        """Number of rows that the training uses, by all readers together."""
        return self.max_steps * self.batch_size * self.gradient_accumulation_steps * self.readers
