"""Drafts that are whole models: a small LLM with a projector of its own, behind the target's frozen encoder.

The draft looks at the video itself, at the features that the target's encoder gives, so that it knows the times. It has
the target's vocabulary. First it learns the answers of the data, then those that the target gives.

B rows, P positions, D width of the draft
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmllm.config import LossConfig
from mmllm.decoding.trained_draft import TargetRows, TrainedDraft, text_decoder
from mmllm.errors import ConfigError
from mmllm.fields import require, to_mapping
from mmllm.model import MmllmForConditionalGeneration
from mmllm.registry import register
from mmllm.train.building import copying_, decoder_config, sinusoid_
from mmllm.train.model_config import DecoderConfig

_COPIED = ("encoder", "image_encoder", "audio_encoder", "reducers")
"""Parts of the target that the draft has, too, with the same weights."""


@dataclass(frozen=True, kw_only=True)
class DraftModelConfig:
    """The size of the draft's LLM."""

    width: int = 48
    layers: int = 1
    heads: int = 4
    mlp_width: int = 128

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_width"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.width % (2 * self.heads) == 0, self, "width", f"divisible by twice the {self.heads} heads")


@dataclass(frozen=True, kw_only=True)
class ExitsConfig(DraftModelConfig):
    """The size of the draft's LLM, and where it may stop."""

    layers: int = 2
    exits: tuple[int, ...] = (1, 2)
    """After how many layers the draft may stop; the last one is `layers`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in zip((0, *self.exits), self.exits, strict=False))
        allowed = bool(self.exits) and rising and self.exits[-1] == self.layers
        require(allowed, self, "exits", f"rising numbers of layers that end with layers = {self.layers}, such as 1+2")


class DraftModel(TrainedDraft):
    """A whole model that learns what its target says."""

    pretrains: ClassVar[bool] = True
    of_one_target: ClassVar[bool] = False
    config: DraftModelConfig

    def __init__(self, config: DraftModelConfig, *, model: Any) -> None:
        super().__init__()
        self.config = config
        self.model = small_model(config, model)

    @property
    def exits(self) -> tuple[int, ...]:
        """After how many layers there is a loss."""
        return (self.config.layers,)

    def check(self, model: Any) -> None:
        """Checks that the draft can look at what its target looks at."""
        if model.reads_question:
            raise ConfigError(f"{self.registered_name}: a part of the target reads the question; a draft that is a "
                              "model of its own cannot")  # fmt: skip

    def loss(self, rows: TargetRows) -> Tensor:
        """Cross-entropy of the next token at all exits, which share the last norm and the LM head."""
        rows = TargetRows.of_batch(self.model, rows.batch)
        decoder = text_decoder(self.model)
        outputs = decoder(
            inputs_embeds=rows.embeddings,
            attention_mask=rows.mask,
            position_ids=rows.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        wanted, total = rows.following[rows.answered], torch.zeros((), device=rows.embeddings.device)
        for exit_after in self.exits:
            last = exit_after == self.config.layers  # transformers has normed this one
            hidden = outputs.last_hidden_state if last else decoder.norm(outputs.hidden_states[exit_after])
            total = total + cross_entropy(self.model.lm_logits(hidden[rows.answered]), wanted)
        return total

    def save(self, folder: Path, processor: Any) -> None:
        """Writes a model that `VideoQA` loads."""
        self.model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Reads the weights of such a model."""
        load_model(self.model, folder / "model.safetensors")


@register("draft", "fastdraft", config=DraftModelConfig)
class FastDraftModel(DraftModel):
    """A small model with the target's vocabulary, aligned with its answers (FastDraft)."""


@register("draft", "s2d", config=ExitsConfig)
class ExitsModel(DraftModel):
    """A small model whose first layers are models, too, trained together (S2D)."""

    config: ExitsConfig

    @property
    def exits(self) -> tuple[int, ...]:
        """After how many layers there is a loss."""
        return self.config.exits


def small_model(config: DraftModelConfig, target: Any) -> MmllmForConditionalGeneration:
    """A model with the target's frozen encoder and vocabulary, and a new small LLM and projector."""
    text = target.config.get_text_config()
    ids = {f"{name}_token_id": getattr(text, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = DecoderConfig(width=config.width, layers=config.layers, heads=config.heads, mlp_width=config.mlp_width)
    whole = copy.deepcopy(target.config)
    whole.text_config = decoder_config(sizes, vocab_size=text.vocab_size, **ids)
    whole.loss, whole.tie_word_embeddings, whole.origin = to_mapping(LossConfig()), True, None
    model = MmllmForConditionalGeneration(whole)
    copying_(model.language_model)
    if whole.time_token_ids:
        sinusoid_(model, whole.time_token_ids)
    for name in _COPIED:
        part, own = getattr(target, name), getattr(model, name)
        if isinstance(part, torch.nn.Module):
            own.load_state_dict(part.state_dict())
            own.requires_grad_(False)
    model.generation_config = copy.deepcopy(target.generation_config)
    return model
