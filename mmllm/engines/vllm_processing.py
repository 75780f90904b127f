"""How vLLM prepares media for our models: pixels by our processor, and the places of their tokens in the prompt.

    "<video> When ...?" -> ids -> the placeholder's id, replaced by one id for each visual token
                                  (and the text before each frame, if the model reads some)

T frames, S side of the encoder's input, R ids of a medium's run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from mmllm.config import MmllmConfig
from mmllm.engines.servable import require_servable
from mmllm.engines.visual_counts import Counts, VisualCounts, total
from mmllm.engines.vllm_videos import seconds_as_numbers
from mmllm.errors import InputError
from mmllm.modeling.placeholders import run_of_ids
from mmllm.processor import MmllmProcessor

PIXELS = {"video": "pixel_values_videos", "image": "pixel_values"}
"""Modality -> field with the pixels of a medium: T 3 S S, or 3 S S."""


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about a model before it serves it."""

    def get_hf_config(self) -> MmllmConfig:
        """The model's configuration."""
        return self.ctx.get_hf_config(MmllmConfig)

    def get_hf_processor(self, **kwargs: object) -> MmllmProcessor:
        """Our processor; options of media are given to its calls, not here."""
        return self.ctx.get_hf_processor(MmllmProcessor)

    @cached_property
    def counts(self) -> VisualCounts:
        """Counts of visual tokens.

        Raises:
            ConfigError: naming what an engine cannot run of the model.
        """
        return require_servable(self.get_hf_config(), self.get_hf_processor())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of videos and images.

        Raises:
            ConfigError: naming what an engine cannot run of the model. vLLM asks this before its engine starts.
        """
        _ = self.counts
        return dict.fromkeys(PIXELS)

    def get_data_parser(self) -> MultiModalDataParser:
        """A parser that gives videos with their metadata, where the times of frames are."""
        return MultiModalDataParser(
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The largest media that a prompt can hold, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """The placeholders of so many media."""
        processor = self.info.get_hf_processor()
        return "".join(processor.modalities[kind].word * mm_counts.get(kind, 0) for kind in PIXELS)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Images, and videos of the model's number of frames, or of as many as a prompt has places for."""
        processor, videos = self.info.get_hf_processor(), mm_counts.get("video", 0)
        side, frames = processor.frame_transform.size, processor.num_frames
        while frames > 1 and total(self.info.counts.of_video(frames)) * videos > seq_len:
            frames -= 1
        images = self._get_dummy_images(
            width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        pictures = self._get_dummy_videos(
            width=side, height=side, num_frames=frames, num_videos=videos, overrides=mm_options.get("video")
        )
        return {
            "image": images,
            "video": [(video, seconds_as_numbers(np.arange(len(video)), float(len(video)))) for video in pictures],
        }


class Processor(BaseMultiModalProcessor[ProcessingInfo]):
    """Media to pixels and runs of ids. A run leaves the fields again once the prompt has it."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Pixels and the run of each medium, prepared alone: what one looks like depends on no other.

        Raises:
            InputError: if a medium cannot be read, or an option is not one of videos or images.
        """
        processor, options = self.info.get_hf_processor(), self.info.ctx.get_merged_mm_kwargs(hf_kwargs)
        readable = {name for kind in PIXELS for name in processor.modalities[kind].options}
        if unread := [name for name in options if name not in readable]:
            raise InputError(f"mm_processor_kwargs: nobody reads {unread[0]!r}; {', '.join(sorted(readable))} are read")
        fields: dict[str, list[Tensor]] = {}
        for kind, pixels in PIXELS.items():
            own = {name: value for name, value in options.items() if name in processor.modalities[kind].options}
            for source in _listed(hf_data.get(processor.modalities[kind].argument)):
                inputs = processor.media_inputs(kind, [_without_vllms(source)], **own, **_sampling(source, kind))
                fields.setdefault(pixels, []).append(inputs.pixels[0].to(self.info.ctx.model_config.dtype))
                fields.setdefault(_run_field(kind), []).append(self._run(kind, inputs))
        return BatchFeature(fields)

    def _run(self, kind: str, inputs: Any) -> Tensor:
        """int64, R. The ids in place of a medium's placeholder."""
        processor = self.info.get_hf_processor()
        placeholder = processor.placeholder_ids[processor.modalities[kind].word]
        counts: Counts = self.info.counts.of_video(inputs.frames) if kind == "video" else self.info.counts.of_image()
        if not isinstance(counts, list):
            return torch.full((counts,), placeholder)
        frames = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return run_of_ids(placeholder, frames, None if inputs.frame_text is None else inputs.frame_text[0])

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        """A value of each field for each medium."""
        kinds = [kind for kind, pixels in PIXELS.items() if pixels in hf_inputs]
        return {PIXELS[kind]: MultiModalFieldConfig.batched(kind) for kind in kinds} | {
            _run_field(kind): MultiModalFieldConfig.batched(kind, keep_on_cpu=True) for kind in kinds
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        """The run of each medium in place of its placeholder; the placeholder's ids in it get embeddings."""
        processor = self.info.get_hf_processor()
        updates = []
        for kind, items in out_mm_kwargs.items():
            placeholder = processor.placeholder_ids[processor.modalities[kind].word]
            runs = [
                PromptUpdateDetails.select_token_id(item.pop(_run_field(kind)).data.tolist(), placeholder)
                for item in items
            ]
            updates.append(PromptReplacement(modality=kind, target=[placeholder], replacement=runs.__getitem__))
        return updates


def _run_field(kind: str) -> str:
    """Name of the field with the run of ids of a modality."""
    return f"{kind}_run"


def _listed(media: Any) -> list[Any]:
    return [] if media is None else list(media)


def _without_vllms(source: Any) -> Any:
    """A medium as our processor takes it: of a video's metadata what transformers' `VideoMetadata` has."""
    if not isinstance(source, tuple):
        return source
    frames, metadata = source
    return frames, {name: value for name, value in metadata.items() if name != "do_sample_frames"}


def _sampling(source: Any, kind: str) -> dict[str, bool]:
    """Whether the model's rule still has to choose among a video's frames: vLLM's reader says what it has done."""
    return {"do_sample_frames": bool(source[1].get("do_sample_frames", True))} if kind == "video" else {}
