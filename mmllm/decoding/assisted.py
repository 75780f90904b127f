"""Assisted decoding of transformers: the model's own first layers, or another model, draft a chain. Exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmllm.decoding.assisting import AssistedLoop
from mmllm.decoding.drafter import loaded
from mmllm.decoding.refusals import check_llm, same_vocabulary
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class AssistedConfig:
    """Who drafts: exactly one of the two."""

    layers: int | None = None
    """The model's own first layers."""
    draft: str | None = None
    """Folder or hub id of a language model with the target's vocabulary; for prompts of text."""

    def __post_init__(self) -> None:
        require((self.layers is None) != (self.draft is None), self, "layers", "given, or draft, and not both")
        require(self.layers is None or self.layers >= 1, self, "layers", "at least 1")


@register("decoding", "assisted", config=AssistedConfig)
class Assisted(AssistedLoop):
    """The model's own first layers or a small model drafts a chain (assisted decoding of transformers): exact.

    Args:
        config: its settings.
        draft_model: a language model in place of the one that `config.draft` names.
    """

    hosted = False

    def __init__(self, config: AssistedConfig, draft_model: Any = None) -> None:
        self.config, self.draft_model = config, draft_model

    def settings(self, model: Any, input_ids: Tensor) -> tuple[dict[str, Any], Any]:
        """The early exit, or the assistant.

        Raises:
            ConfigError: if the model has no more layers than that, or the assistant another vocabulary.
        """
        text = model.config.get_text_config()
        if self.config.layers is not None:
            if self.config.layers >= text.num_hidden_layers:
                raise ConfigError(f"layers = {self.config.layers}: the model has {text.num_hidden_layers}: take fewer")
            return {"assistant_early_exit": self.config.layers}, None
        if hasattr(model, "is_placeholder") and bool(model.is_placeholder(input_ids).any()):
            raise ConfigError(
                "decoding assisted: an assistant of transformers cannot read the target's visual tokens: take "
                "assisted:layers=N, or spectr:draft=PATH, which shows the drafter the video"
            )
        if self.draft_model is None:
            assert self.config.draft is not None
            self.draft_model = loaded(self.config.draft)
        check_llm(self.registered_name, self.draft_model)
        same_vocabulary(self.registered_name, text.vocab_size, self.draft_model.config.get_text_config().vocab_size)
        return {}, self.draft_model
