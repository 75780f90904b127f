"""Settings of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmllm.errors import ConfigError
from mmllm.fields import closest, require, require_seed
from mmllm.runtime import processes
from mmllm.train.schedule import TrainingSchedule


@dataclass(frozen=True, kw_only=True)
class ReinforceTraining(TrainingSchedule):
    """Settings of the training. Fields that TRL's GRPO has, too, mean the same under the same name."""

    max_steps: int = 200
    batch_size: int = 8
    """Answers whose loss is computed at once on each device."""
    gradient_accumulation_steps: int = 4
    """A step has so many times `batch_size` answers on each device; together a multiple of `num_generations`."""
    num_generations: int = 8
    """Answers to the same prompt; the reward of each is compared with those of the others."""
    num_iterations: int = 1
    """Steps that are taken with the same answers."""
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    temperature: float = 1.0
    """Of the answers that are drawn, and of the probabilities that are learned."""
    max_completion_length: int = 64
    """Longest answer in tokens; a longer one is cut, and gets the reward of what is there."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    epsilon: float = 0.2
    """Clipping of the ratio of probabilities, downwards."""
    epsilon_high: float = 0.28
    """The same upwards."""
    lora_rank: int = 16
    """Rank of low-rank adapters (peft) in the LLM; 0 trains all its weights."""
    frozen: tuple[str, ...] = ("encoder",)
    """Parts of a model of ours that are frozen; `encoder` always is. Of a hosted model everything but the adapters is
    frozen."""
    keep_features: bool = True
    """Cache the features of the frozen encoder on disk; False encodes a video each time it is drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_iterations", "max_completion_length"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.num_generations >= 2, self, "num_generations", "at least 2: rewards are compared within a group")
        require(self.temperature > 0, self, "temperature", "above zero: with 0 all answers of a group are the same")
        require(0 < self.epsilon < 1, self, "epsilon", "between 0 and 1")
        require(self.epsilon_high > 0, self, "epsilon_high", "above zero")
        require(self.lora_rank >= 0, self, "lora_rank", "zero or more")
        require("encoder" in self.frozen, self, "frozen", "a list that includes 'encoder'")
        require(self.matrix_learning_rate == 0, self, "matrix_learning_rate", "0: rewards are learned with AdamW")
        require(self.save_steps % self.num_iterations == 0, self, "save_steps", "a multiple of num_iterations")

    @property
    def prompts(self) -> int:
        """Prompts of one step, in all processes together.

        Raises:
            ConfigError: if the answers of a step are no whole groups.
        """
        answers = self.batch_size * self.gradient_accumulation_steps * processes.count()
        factors = "batch_size * gradient_accumulation_steps * processes"
        divides = answers % self.num_generations == 0
        require(divides, self, "num_generations", f"a divisor of the {answers} answers of a step ({factors})")
        return answers // self.num_generations


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """All settings of reinforcement learning, without its data."""

    model: str
    """Folder or hub id of the model to train."""
    seed: int = 0
    adapter_only: bool = False
    """Save only the adapters; otherwise they are merged and the whole model is saved."""
    reducers: tuple[str, ...] = ()
    """Reducers before the LLM of a hosted model while it is trained; a model of ours has those of its configuration."""
    rewards: Mapping[str, float] = field(default_factory=lambda: {"tiou": 1.0, "format": 0.1})
    """Reward -> its weight; their weighted sum is learned. See `mmllm.reinforcement.rewards.REWARDS`."""
    training: ReinforceTraining = field(default_factory=ReinforceTraining)

    def __post_init__(self) -> None:
        from mmllm.reinforcement.rewards import REWARDS

        require_seed(self.seed, "ReinforceConfig.seed")
        rank = self.training.lora_rank
        require(rank > 0 or not self.adapter_only, self, "adapter_only", f"False with lora_rank = {rank}")
        require(any(weight > 0 for weight in self.rewards.values()), self, "rewards", "at least one weight above zero")
        for name in self.rewards:
            if name not in REWARDS:
                raise ConfigError(f"ReinforceConfig.rewards: no reward {name!r}; {closest(name, REWARDS)}")
