"""How long and how fast to train: what every training stage has in common."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Fields are named as in transformers' TrainingArguments where they exist there."""

    max_steps: int = 1000
    batch_size: int = 4
    """Rows of a step on each device: videos with their questions, or scenes."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero."""
    matrix_learning_rate: float = 0.0
    """The same for the weight matrices where these are trained by Muon; 0 trains everything by AdamW."""
    warmup_share: float = 0.05
    """Share of the steps over which the learning rate rises."""
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
        require(0 <= self.warmup_share < 1, self, "warmup_share", "from 0 to below 1")
        require(self.learning_rate > 0, self, "learning_rate", "above zero")
        require(self.matrix_learning_rate >= 0, self, "matrix_learning_rate", "zero or more")
