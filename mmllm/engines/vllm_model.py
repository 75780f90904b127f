"""Our models inside vLLM: the visual half as it is here, and vLLM's own class of the LLM.

    pixels -> encoder -> reducers -> projector -> reducers -> plain path -> embeddings for vLLM's prompt

An LLM of which vLLM has no class is run by its backend for transformers' models. P positions, D width
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from mmllm.engines.visual_half import VisualHalf
from mmllm.engines.vllm_processing import PIXELS, DummyInputs, ProcessingInfo, Processor
from mmllm.modalities.border import modalities


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class VllmModel(nn.Module, SupportsMultiModal, SupportsPP):
    """A model of mmllm on the plain path, as vLLM runs it."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "grounding.": None,  # of training
            **{f"{slot}.": f"visual.{slot}." for slot in VisualHalf.saved},
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """The placeholder of a medium in a prompt."""
        return modalities()[modality].word

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.configure_mm_token_handling(  # type: ignore[operator]
            vocab_size=config.text_config.vocab_size,
            mm_token_ids=[token for token in (config.video_token_id, config.image_token_id) if token is not None],
        )
        with self._mark_tower_model(vllm_config, set(PIXELS)):  # type: ignore[operator]
            self.visual = VisualHalf(config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """P D for each medium of one modality, in order."""
        for kind, pixels in PIXELS.items():
            if kwargs.get(pixels) is not None:
                return [self.visual.embeddings(kind, medium) for medium in kwargs[pixels]]
        return []

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of the LLM; the media are among `inputs_embeds` already."""
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of the LLM."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads the weights of a folder that mmllm saved; their names here."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
