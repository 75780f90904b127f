"""How long and how fast to train: what every training stage has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmllm.fields import require
from mmllm.runtime import processes


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """Fields are named as in transformers' TrainingArguments where they exist there."""

    renamed_fields: ClassVar[dict[str, str]] = {"warmup_share": "warmup_fraction"}

    max_steps: int = 1000
    batch_size: int = 4
    """Rows of a step on each device: videos with their questions, or scenes."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero."""
    matrix_learning_rate: float = 0.0
    """The same for the weight matrices where these are trained by Muon; 0 trains everything by AdamW."""
    warmup_fraction: float = 0.05
    """Fraction of the steps over which the learning rate rises."""
    weight_decay: float = 0.05
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    logging_steps: int = 20
    save_steps: int = 200
    max_bad_steps: int = 10
    """Steps without a finite gradient are skipped; so many in a row end the training."""

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
        require(self.matrix_learning_rate >= 0, self, "matrix_learning_rate", "zero or more")


@dataclass(frozen=True, kw_only=True)
class RowTraining(TrainingSchedule):
    """A training on the rows of the run's data. A row is a video with several of its questions, or a dialogue."""

    questions_per_video: int = 8
    """At most so many questions of a video share its visual tokens in a row; 1 trains one question at a time."""
    system_prompt: str | None = None
    """What the system says in training, if it is not what it says when the model is asked."""
    max_text_tokens: int = 2048
    """A dialogue with more text is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.questions_per_video >= 1, self, "questions_per_video", "at least 1")
        require(self.max_text_tokens >= 1, self, "max_text_tokens", "at least 1")

    @property
    def rows(self) -> int:
        """How many rows it takes, in all processes together."""
        return self.max_steps * self.batch_size * self.gradient_accumulation_steps * processes.count()
