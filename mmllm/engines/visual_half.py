"""The visual half of a model without its LLM, for an engine that runs the LLM itself.

T frames, S side of the encoder's input, P positions, D LLM width
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmllm.config import MmllmConfig
from mmllm.modalities.border import modalities, parts_of
from mmllm.modalities.image import ImageInputs
from mmllm.modalities.video import VideoInputs
from mmllm.modeling.vision import VisualStages
from mmllm.stages import build, model_slots, stages_of


class VisualHalf(VisualStages):
    """The stages from pixels to embeddings, with the names of weights that they have in a whole model."""

    config_class = MmllmConfig
    _supports_sdpa = True
    saved: ClassVar[tuple[str, ...]] = (*model_slots(), "modality_parts")
    """Attributes with weights."""

    def __init__(self, config: MmllmConfig) -> None:
        super().__init__(config)
        self.hold(build(stages_of(config), config.text_config.hidden_size, decoder=config.text_config))
        self.modality_parts = nn.ModuleDict(parts_of(config))

    @torch.no_grad()
    def embeddings(self, kind: str, pixels: Tensor) -> Tensor:
        """P D: what the LLM reads of one medium.

        Args:
            kind: `video` or `image`.
            pixels: T 3 S S of a video, 3 S S of an image.
        """
        batch = pixels.unsqueeze(0)
        if kind == "video":
            frames = torch.ones(batch.shape[:2], dtype=torch.bool, device=batch.device)
            sequence = modalities()[kind].encode(self, VideoInputs(pixels=batch, frame_mask=frames))
        else:
            sequence = modalities()[kind].encode(self, ImageInputs(pixels=batch))
        return sequence.embeddings[0][sequence.mask[0]]
