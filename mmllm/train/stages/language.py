"""Trains projector and LLM on the run's data: all weights, or low-rank adapters in the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from mmllm.checkpoints.adapters import with_adapters
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.ring import Ring, Sends
from mmllm.registry import register
from mmllm.train.fitting import fit, trained_model
from mmllm.train.freezing import check_parts, freeze
from mmllm.train.long_rows import Repeated, check_chunks, check_ring, check_source
from mmllm.train.packing import RowCollator
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import TrainingRun, TrainingStage


@dataclass(frozen=True, kw_only=True)
class LanguageTraining(RowTraining):
    """Settings of the training of projector and LLM. A row is a video with several of its questions."""

    frozen: tuple[str, ...] = ("encoder",)
    """Parts of the model to freeze: encoder, reducers, visual_tokenizer, path, decoder_stages, grounding,
    language_model."""
    keep_features: bool = True
    """Cache the features of a frozen encoder on disk; False encodes a video each time it is drawn."""
    packed_attention: bool = False
    """Attend to the questions of a row one by one, in place of a mask over the whole row: the same loss in less time
    and memory. For LLMs with plain attention over all positions."""
    lora_rank: int = 0
    """Rank of low-rank adapters (peft) in the LLM, whose own weights are then frozen; 0 trains all weights."""
    base_kl_weight: float = 0.0
    """Weight of staying with what the LLM said before training: the KL divergence from the LLM without its adapters, at
    each position of rows without a video."""
    chunks: int = 1
    """So many chunks of a row are computed one after another in the backward pass (SeCO): the same gradient, in the
    memory of one chunk and the cache, for one more forward pass."""
    chunk_share: float = 1.0
    """Probability with which a chunk's gradient is computed (SpaCO); below 1 the gradient is right in the mean only."""
    ring: int = 1
    """So many processes share the positions of each row (ring attention): the same gradient, and activations of a part
    of the row in each. The number of processes is a multiple of it."""
    ring_sends: Sends = "keys"
    """What goes round between the attentions of a ring: keys and values, or queries (TokenRing). Keys are fewer where
    several query heads share one; queries and what they have seen travel both ways at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lora_rank >= 0, self, "lora_rank", "zero or more")
        require(self.base_kl_weight >= 0, self, "base_kl_weight", "zero or more")
        plain = self.chunks == self.ring == 1 and not self.packed_attention
        allowed = self.base_kl_weight == 0 or (self.lora_rank > 0 and plain)
        require(allowed, self, "base_kl_weight", "0 without lora_rank, and with chunks, ring or packed_attention")
        require(self.chunks >= 1, self, "chunks", "at least 1")
        require(0 < self.chunk_share <= 1, self, "chunk_share", "above 0, at most 1")
        require(self.chunk_share == 1 or self.chunks > 1, self, "chunk_share", "1 with chunks = 1")
        require(self.chunks == 1 or not self.gradient_checkpointing, self, "chunks", "1 with gradient_checkpointing")
        require(self.chunks == 1 or not self.packed_attention, self, "chunks", "1 with packed_attention")
        require(self.ring >= 1, self, "ring", "at least 1")
        require(self.ring == 1 or self.chunks == 1, self, "ring", "1 with chunks above 1")
        require(self.ring == 1 or not self.packed_attention, self, "ring", "1 with packed_attention")
        require(self.ring > 1 or self.ring_sends == "keys", self, "ring_sends", "'keys' with ring = 1")

    @property
    def readers(self) -> int:
        """How many read rows of their own: the rings."""
        return super().readers // self.ring


@register("training", "language", config=LanguageTraining)
class LanguageStage(TrainingStage):
    """Trains projector, LLM and all other parts that are not frozen to answer the run's questions."""

    folder: ClassVar[str] = "language"
    weights: ClassVar[str] = "model.safetensors"

    def __init__(self, config: LanguageTraining, *, merge: bool = True) -> None:
        """If `merge` is True, adapters are merged into the weights; otherwise the returned model has adapters."""
        self.config = config
        self.merge = merge
        self.rows_needed = config.rows

    def check(self, model: Any) -> None:
        """Checks that the model has all parts in `frozen`."""
        check_parts(model, self.config.frozen, "LanguageTraining.frozen")
        if self.config.chunks > 1:
            check_chunks(model)
        if self.config.ring > 1:
            check_ring(model, self.config.ring)
        if self.config.base_kl_weight and model.llm_stages:
            raise ConfigError("LanguageTraining.base_kl_weight above 0 does not go with stages inside the LLM")

    def part(self, model: Any) -> nn.Module:
        """Returns the whole model."""
        return model

    def train(self, run: TrainingRun, folder: Path) -> Any:
        """Trains what is not frozen; see `TrainingStage`."""
        config = self.config
        # features are not cached if a stage runs inside the encoder, because training may change that stage; nor if the
        # encoder reads questions, because each question has its own features
        cacheable = run.model.encoder_stage is None and not run.model.encoder_reads_question
        keep = config.keep_features and "encoder" in config.frozen and cacheable
        if config.ring > 1:
            check_source(run.source)
        rows = run.rows(config, keep_features=keep)
        torch.manual_seed(run.seed)  # for the initial weights of the adapters
        run.model.loss_chunks, run.model.loss_chunk_share = config.chunks, config.chunk_share
        run.model.base_kl_weight = config.base_kl_weight
        run.model.share_rows(Ring.joined(config.ring, config.ring_sends) if config.ring > 1 else None)
        trainer = fit(
            self._prepared(run.model),
            rows.dataset if config.ring == 1 else Repeated(rows.dataset, config.batch_size, config.ring),
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
        """The model with the named parts frozen and, if `lora_rank` is above 0, with adapters in the LLM."""
        freeze(model, self.config.frozen)
        if self.config.packed_attention:
            model.pack_attention()
        return with_adapters(model, self.config.lora_rank) if self.config.lora_rank else model
