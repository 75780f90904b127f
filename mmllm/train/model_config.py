"""ModelConfig: the parts of the model that a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmllm.config import LossConfig
from mmllm.fields import require
from mmllm.modeling.blending import BlendConfig
from mmllm.stages import StageNames


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A small Llama that is trained from scratch on the words of the synthetic questions."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_width: int = 256
    initial_std: float = 0.1
    """Standard deviation of embeddings and weights at the start."""
    copying: bool = True
    """Let every attention layer start out passing on what it attends to, unchanged: value and output projections
    begin as an orthogonal matrix and its transpose. A model this small otherwise spends half its training on that."""

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, self, "width", f"divisible by the {self.heads} heads")
        require(self.layers >= 1, self, "layers", "at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StageNames):
    """The parts of the model, and what else it is made of."""

    encoder_weights: str | None = None
    """Folder or hub id of published weights of the encoder; random, or trained by this recipe, if None."""
    projector_weights: str | None = None
    """File of a projector's pre-training, with LLaVA's names (`mm_projector.bin` or safetensors); random if None."""
    language_model: str | None = None
    """Folder or hub id of a pretrained decoder LLM; a small one from scratch if None."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The small one."""
    num_frames: int = 100
    num_time_tokens: int = 100
    """Of `time: tokens`; the others have none."""
    time_token_init: Literal["normal", "sinusoid"] = "normal"
    """How new time tokens start: independently (as LITA's), or with neighbours alike (not in LITA)."""
    template: str = "plain"
    system_prompt: str = ""
    """What the system says when the model is asked: a text, or the name of one of `mmllm.preprocessing.templates`."""
    strip_time_tokens: bool = True
    """Swallow white space beside time tokens, as the published model's tokenizer did."""
    blend: BlendConfig = field(default_factory=BlendConfig)
    loss: LossConfig = field(default_factory=LossConfig)
