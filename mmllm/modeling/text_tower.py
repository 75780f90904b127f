"""CLIP's text tower, and the projection that brings patches to where texts are. Both are frozen and never saved.

    question -> pieces of 77 ids -> text tower -> M E
    patch features of CLIP's vision tower -> its last norm -> its projection -> ... E

Q ids of a question, M pieces of it, C width of patch features, E width that both have in the end
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmllm.errors import CheckpointError, ConfigError


class _Parts(NamedTuple):
    """What is needed of a CLIP."""

    text: Any
    norm: Any
    projection: Any


class ClipTextTower:
    """The text half of a CLIP; its weights are loaded when they are first needed.

    Args:
        source: folder or hub id of a whole CLIP, as transformers saves it.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @torch.no_grad()
    def texts(self, ids: Tensor) -> Tensor:
        """float32, M E: the embeddings of a text's pieces.

        Args:
            ids: int64, Q, at least one. Ids of this CLIP's tokenizer, with its first and last token. The last piece is
                filled up with zeros, which are not attended to.

        Raises:
            CheckpointError: if the source cannot be loaded.
        """
        tower = self._parts.text.to(ids.device)
        length = tower.config.max_position_embeddings
        pieces = -(-len(ids) // length)
        padding = pieces * length - len(ids)
        words = torch.nn.functional.pad(ids, (0, padding)).view(pieces, length)
        seen = torch.nn.functional.pad(torch.ones_like(ids), (0, padding)).view(pieces, length)
        return tower(input_ids=words, attention_mask=seen).text_embeds

    @torch.no_grad()
    def patches(self, features: Tensor) -> Tensor:
        """float32, ... E: patch features (... C) of this CLIP's vision tower, where texts are.

        Raises:
            CheckpointError: if the source cannot be loaded.
            ConfigError: if its vision tower has another width.
        """
        width = self._parts.projection.in_features
        if features.shape[-1] != width:
            raise ConfigError(
                f"{self.source} compares texts with patches of width {width}, and the encoder's have "
                f"{features.shape[-1]}: name the CLIP that the encoder was taken from"
            )
        norm, projection = (part.to(features.device) for part in (self._parts.norm, self._parts.projection))
        return projection(norm(features.float()))

    @cached_property
    def _parts(self) -> _Parts:
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        try:
            options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
            text = CLIPTextModelWithProjection.from_pretrained(self.source, **options)
            vision: Any = CLIPVisionModelWithProjection.from_pretrained(self.source, **options)
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{self.source}: CLIP's text tower cannot be loaded: {problem!s:.300}") from None
        parts = _Parts(text, vision.vision_model.post_layernorm, vision.visual_projection)
        return _Parts(*(part.eval().requires_grad_(False) for part in parts))
