"""What methods with a draft model share: the drafter's view of a video, and its place among the options of `generate`.

L given positions, P positions with the visual tokens in place, D width
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.decoding.drafter import OWN, Drafter, DrafterConfig, DrafterPrompt, own_llm
from mmllm.decoding.tree import MachineDecoding, Request
from mmllm.errors import ConfigError
from mmllm.hosting.times import part_of_clip
from mmllm.modeling.placeholders import place
from mmllm.runtime.fingerprint import fingerprint


class DraftedDecoding(MachineDecoding):
    """A method with a draft model.

    Args:
        config: its settings.
        draft_model: a decoder LLM that drafts in place of the one that `config.draft` names, for prompts of text.
    """

    hosted = False
    config: DrafterConfig

    def __init__(self, config: DrafterConfig, draft_model: Any = None) -> None:
        self.config, self.draft_model = config, draft_model
        self._loaded: Any = None
        self._same_encoder: bool | None = None

    def drafter(self, request: Request) -> Drafter:
        """The drafter of a text, behind its prompt."""
        return Drafter(self.registered_name, request, self.config, self.draft_model)

    def options(self, qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Options of `generate`, with the prompt as the drafter sees it if that is not the target's own."""
        if self.draft_model is not None or (self.config.draft == OWN and self.config.frames is None):
            return {"custom_generate": self}
        prompt = self._prompt(qa, encoded, input_ids, attention_mask)
        return {"custom_generate": functools.partial(self, drafter_prompt=prompt)}

    @torch.no_grad()
    def _prompt(self, qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None) -> DrafterPrompt:
        """The prompt as the drafter sees it.

        Raises:
            ConfigError: if the drafter cannot look at the target's frames, or has another vocabulary.
        """
        drafting = qa if self.config.draft == OWN else self._other(qa)
        seen = self._seen(qa, drafting, encoded)
        model = drafting.model
        ids = input_ids.masked_fill(input_ids == qa.model.config.video_token_id, model.config.video_token_id)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        placed = place(ids.to(model.input_device), mask.to(model.input_device), seen.sequences, pad_side="left")
        return DrafterPrompt(
            model=own_llm(model, self.config.layers),
            embeddings=model.embed(placed.input_ids, placed.visual),
            mask=placed.attention_mask,
        )

    def _seen(self, qa: Any, drafting: Any, encoded: Any) -> Any:
        """The video as the drafter sees it; encoded once where it has the target's encoder and all frames."""
        if self.config.frames is not None:
            clip = part_of_clip(encoded.clip, evenly(len(encoded.clip), self.config.frames))
            return drafting.encode_fed(lambda _sink: clip)
        if self._same_encoder is None:
            self._same_encoder = fingerprint(qa.model.encoder) == fingerprint(drafting.model.encoder)
        if self._same_encoder:
            return drafting.encode_again(encoded)
        return drafting.encode_fed(lambda _sink: encoded.clip)

    def _other(self, qa: Any) -> Any:
        """The other model that drafts, loaded once.

        Raises:
            ConfigError: if it does not fit the model that is asked.
        """
        if self._loaded is None:
            self._loaded = type(qa).from_pretrained(self.config.draft)
        other, name = self._loaded, f"decoding {self.registered_name}: draft={self.config.draft}"
        if not hasattr(other.model, "llm_stages") or other.model.llm_stages or other.reads_question:
            raise ConfigError(f"{name}: a drafter is a model of mmllm without stages inside its LLM and without parts "
                              "that read questions")  # fmt: skip
        ours, theirs = (model.processor.tokenizer.get_vocab() for model in (qa, other))
        if ours != theirs:
            raise ConfigError(
                f"{name}: its tokenizer has {len(theirs)} words and the target's {len(ours)}, or they have other ids: "
                "both need one vocabulary"
            )
        if other.processor.frame_transform != qa.processor.frame_transform:
            raise ConfigError(f"{name}: it prepares frames in another way than the model that is asked")
        return other


def evenly(count: int, wanted: int) -> np.ndarray:
    """int64: the numbers of at most `wanted` frames of `count`, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))
