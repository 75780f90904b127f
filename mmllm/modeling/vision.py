"""From pixels to what the LLM reads: encode, reduce, project, path.

V videos, I images, T frames, K tiles of an image or ids of the text before a frame, S side in pixels,
N tokens of a frame, C encoder width, D LLM width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import (
    Encoder,
    EncoderStage,
    LlmStage,
    TokenReducer,
    VideoPath,
    VisualTokenizer,
    llm_stages,
)
from mmllm.modeling.blending import blend
from mmllm.preprocessing.tiles import tilings_of
from mmllm.stages import model_slots
from mmllm.tokens import VisualSequence, VisualTokens


class VisualStages(PreTrainedModel):
    """The part of the model that looks: it has the stages in the order in which they are run."""

    config: MmllmConfig
    encoder: Encoder
    image_encoder: Encoder | None
    reducers: Sequence[TokenReducer]
    visual_tokenizer: VisualTokenizer
    path: VideoPath

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The encoder scores that the configured reducers rank tokens by."""
        return tuple(dict.fromkeys(name for reducer in self.reducers for name in reducer.scores_needed))

    def encode(
        self,
        pixels: Tensor,
        frame_mask: Tensor | None = None,
        times_s: Tensor | None = None,
        encoder: Encoder | None = None,
    ) -> VisualTokens:
        """Patch features of pixels (V T 3 S S), with the scores the reducers need; of `encoder`, or the model's own."""
        options = {} if self.encoder_stage is None else {"inside": self.encoder_stage}
        encoder = self.encoder if encoder is None else encoder
        tokens = encoder(pixels.to(self.dtype), frame_mask=frame_mask, scores=self.scores_needed, **options)
        return tokens.replace(times_s=times_s)

    def encode_images(self, pixels: Tensor, tiling: Tensor | None = None) -> VisualTokens:
        """Patch features of images (I 3 S S), or of images in tiles (I K 3 S S) with how each was cut (I 4)."""
        if pixels.ndim == 4:
            return self.encode(rearrange(pixels, "i c y x -> i 1 c y x"), encoder=self.image_encoder)
        if tiling is None:
            raise InputError("images in tiles need image_tiling, which the processor gives beside pixel_values")
        cuts = tilings_of(tiling)
        tiles = torch.tensor([cut.partitions for cut in cuts], device=pixels.device)
        there = torch.arange(pixels.shape[1], device=pixels.device) < tiles.unsqueeze(1)  # I K
        return self.encode(pixels, there, encoder=self.image_encoder).replace(tiling=cuts)

    def reduce(self, tokens: VisualTokens) -> VisualTokens:
        """What the reducers leave of encoder features."""
        for reducer in self.reducers:
            tokens = reducer(tokens)
        return tokens

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Encoder features to what the LLM reads: reduce, project, path, blend."""
        return self.lay_out(self.reduce(tokens))

    def lay_out(self, tokens: VisualTokens) -> VisualSequence:
        """Reduced tokens to what the LLM reads: project, path.

        Averages of projected tokens are projected averages where the projector is affine; there are fewer of them.
        """
        tokens = tokens.replace(features=tokens.features.to(self.dtype))
        if self.visual_tokenizer.affine and self.path.averages:
            sequence = self.path(tokens)
            few = VisualTokens(features=sequence.embeddings.unsqueeze(1), grid=None)  # B 1 L C
            sequence = dataclasses.replace(sequence, embeddings=self.visual_tokenizer(few).features.squeeze(1))
        else:
            sequence = self.path(self.visual_tokenizer(tokens))
        if self.llm_stages:
            sequence.check_places()
        return blend(sequence, self.config.blending, self.get_input_embeddings().weight, self.time_ids)

    @property
    def time_ids(self) -> Tensor | None:
        """Ids of the time tokens, int64."""
        ids = self.config.time_token_ids
        return torch.tensor(ids, device=self.device) if ids else None

    def see(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frame_mask: Tensor | None = None,
        video_times_s: Tensor | None = None,
        video_features: Tensor | None = None,
        video_scores: dict[str, Tensor] | None = None,
        image_tiling: Tensor | None = None,
        video_frame_text: Tensor | None = None,
    ) -> dict[int, VisualSequence]:
        """Placeholder id -> what the LLM reads of the batch's images and videos.

        Args:
            pixel_values: float, I 3 S S; or I K 3 S S for images in tiles, the whole image first.
            pixel_values_videos: float, V T 3 S S.
            video_frame_mask: bool, V T. False at frames that pad a shorter video.
            video_times_s: float, V T.
            video_features: V T N C, features of the frozen encoder kept from before, in place of pixels.
            video_scores: their scores by name, V T N, where a reducer needs some.
            image_tiling: int64, I 4. Rows and columns of each image's tiles, its height and width in pixels.
            video_frame_text: int64, V T K. Ids of the text that is read before each frame; -1 fills up.
        """
        seen: dict[int, VisualSequence] = {}
        if pixel_values is not None:
            seen[self._placeholder("image_token_id")] = self.arrange(self.encode_images(pixel_values, image_tiling))
        if video_features is not None:
            places = self.encoder.index
            known: dict[str, Any] = {}
            if places is not None:
                known["index"] = places.to(video_features.device).expand(video_features.shape[:3])
            videos = VisualTokens(
                features=video_features,
                grid=self.encoder.grid,
                times_s=video_times_s,
                scores=video_scores or {},
                **known,
            )
            if video_frame_mask is not None:
                videos = videos.replace(mask=video_frame_mask.unsqueeze(-1).expand(video_features.shape[:3]))
            sequence = self.arrange(videos)
        elif pixel_values_videos is not None:
            sequence = self.arrange(self.encode(pixel_values_videos, video_frame_mask, video_times_s))
        else:
            return seen
        seen[self._placeholder("video_token_id")] = dataclasses.replace(sequence, frame_text=video_frame_text)
        return seen

    def _placeholder(self, name: str) -> int:
        placeholder = getattr(self.config, name)
        if placeholder is None:
            raise InputError(f"the configuration has no {name}, so nothing can stand for {name.split('_')[0]}s")
        return placeholder

    @property
    def encoder_stage(self) -> EncoderStage | None:
        """The reducer that drops or merges tokens inside the encoder's blocks, if there is one.

        Raises:
            ConfigError: if there are two.
        """
        stages = [reducer for reducer in self.reducers if isinstance(reducer, EncoderStage)]
        if len(stages) > 1:
            names = " and ".join(stage.registered_name for stage in stages)
            raise ConfigError(f"one reducer at most works inside the encoder, not {names}")
        return stages[0] if stages else None

    @property
    def llm_stages(self) -> list[LlmStage]:
        """What works inside the LLM, of all slots, in order."""
        parts = (getattr(self, name) for name in model_slots())
        return llm_stages([part for filled in parts if isinstance(filled, (list, nn.ModuleList)) for part in filled])
