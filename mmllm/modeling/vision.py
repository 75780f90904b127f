"""From pixels to the visual tokens that the LLM reads: encode, reduce, project, reduce, path.

V videos, I images, T frames, K tiles of an image or ids of the text before a frame, S side in pixels,
N tokens of a frame, C encoder width, D LLM width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import (
    AudioEncoder,
    AudioProjector,
    Encoder,
    EncoderStage,
    LlmStage,
    Part,
    ProjectedReducer,
    TokenReducer,
    VideoPath,
    VisualTokenizer,
    llm_stages,
)
from mmllm.modalities.border import modalities
from mmllm.modalities.inputs import Media, ModalityInputs
from mmllm.modalities.modality import Modality
from mmllm.modeling.blending import blend
from mmllm.modeling.hearing import between_frames, heard
from mmllm.modeling.scenes import frame_similarity
from mmllm.stages import model_slots
from mmllm.tokens import VisualSequence, VisualTokens


class VisualStages(PreTrainedModel):
    """The visual half of the model: its stages, in the order in which they run."""

    config: MmllmConfig
    encoder: Encoder
    image_encoder: Encoder | None
    audio_encoder: AudioEncoder | None
    audio_projector: AudioProjector | None
    reducers: Sequence[TokenReducer]
    visual_tokenizer: VisualTokenizer
    path: VideoPath
    decoder_stages: Sequence[LlmStage]
    language_model: Any

    def hold(self, parts: Mapping[str, Any]) -> None:
        """Takes the parts that `mmllm.stages.build` made, by slot, as attributes.

        Raises:
            ConfigError: if a list has parts with weights beside parts that are no modules.
        """
        for name, part in parts.items():
            setattr(self, name, _registered(name, part))

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """The encoder scores by which the configured reducers rank tokens."""
        return tuple(dict.fromkeys(name for reducer in self.reducers for name in reducer.scores_needed))

    def encode(
        self,
        pixels: Tensor,
        frame_mask: Tensor | None = None,
        times_s: Tensor | None = None,
        encoder: Encoder | None = None,
        question: Tensor | None = None,
        margins: tuple[int, int] = (0, 0),
    ) -> VisualTokens:
        """Patch features of pixels (V T 3 S S) from `encoder`, or else the model's own, with the reducers' scores.

        An encoder that reads the question about each video gets its ids (int64, V Q). One that looks at neighbours gets
        `margins`: how many frames at both ends are only there to be looked at, and get no features.

        Raises:
            InputError: if it reads questions and there is none.
        """
        options: dict[str, Any] = {} if self.encoder_stage is None else {"inside": self.encoder_stage}
        encoder = self.encoder if encoder is None else encoder
        if encoder.reads_question:
            options["question"] = _required(question, encoder)
        if any(margins):
            options["margins"] = margins
        tokens = encoder(pixels.to(self.dtype), frame_mask=frame_mask, scores=self.scores_needed, **options)
        return tokens.replace(times_s=times_s, question=question)

    def hear(
        self,
        waveform: Tensor,
        times_s: Tensor,
        frame_mask: Tensor | None = None,
        length: Tensor | None = None,
        start_s: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Audio features V T A E of each frame, and which frames have sound (bool, V T).

        Args:
            waveform: float32, V L, at 16 kHz.
            times_s: V T.
            frame_mask: bool, V T.
            length: int64, V. Samples of each video's sound; None if all are as long.
            start_s: float, V. The instant of sample 0; None for 0.

        Raises:
            InputError: if the model has no audio encoder.
        """
        if self.audio_encoder is None:
            raise InputError("a video is given with its sound, and this model has no audio encoder: read it without")
        return heard(self.audio_encoder, waveform, times_s, frame_mask=frame_mask, length=length, start_s=start_s)

    def reduce(self, tokens: VisualTokens) -> VisualTokens:
        """Encoder features after the reducers in front of the projector.

        With the sound and what else the path needs of whole frames.
        """
        tokens = self._for_path(tokens)
        return _reduced(tokens, [reducer for reducer in self.reducers if not isinstance(reducer, ProjectedReducer)])

    def _for_path(self, tokens: VisualTokens) -> VisualTokens:
        """Encoder features of the frames that the path reads, with the similarity of neighbours if it asks for that."""
        frames = tokens.frame_mask
        read = self.path.frames_read(frames, tokens.text_tokens)
        if read is not frames:
            tokens = tokens.replace(mask=tokens.mask & read.unsqueeze(-1))
        if self.path.needs_similarity and tokens.similarity is None:
            return tokens.replace(similarity=frame_similarity(tokens, self.encoder.scene_channels))
        return tokens

    def arrange(self, tokens: VisualTokens) -> VisualSequence:
        """Encoder features to the sequence that the LLM reads: reduce, project, reduce again, path, blend."""
        return self.lay_out(self.reduce_projected(self.project(self.reduce(tokens))))

    @property
    def projected_reducers(self) -> list[ProjectedReducer]:
        """The reducers behind the projector, in order."""
        return [reducer for reducer in self.reducers if isinstance(reducer, ProjectedReducer)]

    @property
    def projects_averages(self) -> bool:
        """Whether the path comes before the projector: that is affine, and the path takes averages.

        The result is the same, and fewer tokens are projected.
        """
        return self.visual_tokenizer.affine and self.path.averages and not self.projected_reducers

    def project(self, tokens: VisualTokens) -> VisualTokens:
        """Reduced tokens at the LLM's width; at the encoder's if the path comes before the projector.

        With what reducers behind the projector need of tokens in front of it, and of the question.
        """
        if self.visual_tokenizer.reads_question:
            _required(tokens.question, self.visual_tokenizer)
        for reducer in self.projected_reducers:
            if reducer.reads_question:
                _required(tokens.question, reducer)
            tokens = reducer.before_projector(tokens)
        tokens = tokens.replace(features=tokens.features.to(self.dtype))
        if any(part.reads_words for part in (self.visual_tokenizer, *self.projected_reducers)):
            tokens = self._with_words(tokens)
        return tokens if self.projects_averages else self.visual_tokenizer(tokens).with_sound_of(tokens)

    def _with_words(self, tokens: VisualTokens) -> VisualTokens:
        """Tokens with the LLM's embeddings of their question's words."""
        assert tokens.question is not None
        return tokens.replace(words=self.get_input_embeddings()(tokens.question.clamp(min=0)))

    def reduce_projected(self, tokens: VisualTokens) -> VisualTokens:
        """Projected tokens after the reducers behind the projector."""
        return _reduced(tokens, self.projected_reducers)

    def lay_out(self, tokens: VisualTokens) -> VisualSequence:
        """Projected tokens to the sequence that the LLM reads: path, sound between the frames, blend."""
        if self.path.reads_question:
            _required(tokens.question, self.path)
        sequence = self.path(tokens)
        if self.projects_averages:
            averages = VisualTokens(features=sequence.embeddings.unsqueeze(1), grid=None)  # B 1 L C
            sequence = dataclasses.replace(sequence, embeddings=self.visual_tokenizer(averages).features.squeeze(1))
        if self.audio_projector is not None and tokens.audio is not None and tokens.audio_mask is not None:
            spoken = self.audio_projector(tokens.audio.to(self.dtype))
            sequence = between_frames(sequence, spoken, tokens.audio_mask)
        if self.llm_stages:
            sequence.check_places()
        blending = self.config.blending
        return blend(sequence, blending, self._time_anchors(sequence) if blending.time_anchor else None)

    def time_ids_on(self, device: torch.device) -> Tensor | None:
        """Ids of the time tokens, int64; None without time tokens."""
        ids = self.config.time_token_ids
        return torch.tensor(ids, device=device) if ids else None

    def _time_anchors(self, sequence: VisualSequence) -> Tensor | None:
        """K D: the time tokens' embeddings. The table is called, because its weights may be on disk, or adapted."""
        ids = self.time_ids_on(sequence.embeddings.device)
        return None if ids is None else self.get_input_embeddings()(ids)

    @property
    def input_device(self) -> torch.device:
        """The device that inputs belong on. `device` can be "meta", if accelerate keeps parts of the model on disk."""
        placed = [place for place in getattr(self, "hf_device_map", {}).values() if place != "disk"]
        if self.device.type != "meta" and not placed:
            return self.device
        return torch.device(next((place for place in placed if place != "cpu"), "cpu"))

    def visual_sequences(
        self, media: Media, input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> dict[int, VisualSequence]:
        """Placeholder id -> the sequence that the LLM reads, for the media of a batch.

        Args:
            media: name of each modality -> its inputs. `mmllm.modalities.border.from_flat` makes them from the output
                of the processor.
            input_ids, attention_mask: B L. The text around them, for a path that leaves room for it.

        Raises:
            InputError: if the configuration has no placeholder for one of the modalities.
        """
        registered = modalities()
        if self.path.counts_text and input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            media = {name: self._beside_text(name, inputs, input_ids, mask.bool()) for name, inputs in media.items()}
        return {
            self._placeholder(registered[name]): registered[name].encode(self, inputs) for name, inputs in media.items()
        }

    def _beside_text(self, name: str, inputs: ModalityInputs, input_ids: Tensor, valid: Tensor) -> ModalityInputs:
        """Inputs of a modality with the number of text tokens in the row of each medium, if they have room for that."""
        fields = {field.name for field in dataclasses.fields(inputs)}
        if "text_tokens" not in fields - inputs.given().keys():
            return inputs
        ids = [getattr(self.config, modality.id_field, None) for modality in modalities().values()]
        places = torch.tensor([number for number in ids if number is not None], device=input_ids.device)
        text = (valid & ~torch.isin(input_ids, places)).sum(1)
        rows = (valid & (input_ids == self._placeholder(modalities()[name]))).nonzero()[:, 0]
        # another number of placeholders is refused where media are placed
        return dataclasses.replace(inputs, text_tokens=text[rows]) if len(rows) == len(inputs) else inputs  # type: ignore[call-arg]

    def _placeholder(self, modality: Modality[Any]) -> int:
        placeholder = getattr(self.config, modality.id_field, None)
        if placeholder is None:
            raise InputError(
                f"the configuration has no {modality.id_field}, so no placeholder can stand for {modality.name}s"
            )
        return placeholder

    @property
    def encoder_reads_question(self) -> bool:
        """Whether the encoder's features of a video depend on the question, so that each question needs its own."""
        return any(encoder.reads_question for encoder in (self.encoder, self.image_encoder) if encoder is not None)

    @property
    def reads_question(self) -> bool:
        """Whether any visual part reads the question: what the LLM sees of a video then depends on it."""
        return any(part.reads_question for name in model_slots() for part in listed(getattr(self, name)))

    @property
    def encoder_stage(self) -> EncoderStage | None:
        """The reducer that works inside the encoder's blocks; None without one.

        Raises:
            ConfigError: if there is more than one.
        """
        stages = [reducer for reducer in self.reducers if isinstance(reducer, EncoderStage)]
        if len(stages) > 1:
            names = " and ".join(stage.registered_name for stage in stages)
            raise ConfigError(f"one reducer at most works inside the encoder, not {names}")
        return stages[0] if stages else None

    @property
    def llm_stages(self) -> list[LlmStage]:
        """The stages that work inside the LLM, from all slots, in order."""
        parts = (getattr(self, name) for name in model_slots())
        return llm_stages([part for filled in parts if isinstance(filled, (list, nn.ModuleList)) for part in filled])


def _reduced(tokens: VisualTokens, reducers: Sequence[TokenReducer]) -> VisualTokens:
    """The tokens after some reducers, with the sound that they had before."""
    reduced = tokens
    for reducer in reducers:
        if reducer.reads_question:
            _required(reduced.question, reducer)
        reduced = reducer(reduced)
    return reduced.with_sound_of(tokens)


def _registered(slot: str, parts: Any) -> Any:
    """The parts of a slot in the form in which a module saves their weights.

    Raises:
        ConfigError: if a list has parts with weights beside parts that are no modules.
    """
    if not isinstance(parts, list):
        return parts
    modules = [isinstance(part, nn.Module) for part in parts]
    if all(modules):
        return nn.ModuleList(parts)
    if any(modules):
        plain = parts[modules.index(False)].registered_name
        raise ConfigError(f"{slot}: {plain!r} is no torch module, so it cannot stand beside one with weights")
    return parts


def listed(parts: Any) -> list[Any]:
    """The parts of a slot, as a list."""
    return [] if parts is None else list(parts) if isinstance(parts, (list, nn.ModuleList)) else [parts]


def _required(question: Tensor | None, part: Part) -> Tensor:
    if question is None:
        raise InputError(
            f"{part.registered_name!r} reads the question about each video or image: give video_question or "
            "image_question, which the processor makes"
        )
    return question
