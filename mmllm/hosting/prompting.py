"""Prompts about a video, made by transformers' own processor. Its pixels are prepared once for all questions.

    clip -> processor, its outputs remembered -> pixels for the tower
    messages -> processor, with the remembered outputs -> ids of one question

A processor writes placeholders, time text and types of tokens itself; nothing of it is written anew here.

B rows, N prompt length, T frames
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from mmllm.errors import ConfigError, InputError
from mmllm.hosting.encoding import ROW_INPUTS, is_pixels
from mmllm.hosting.family import HostFamily
from mmllm.hosting.times import Times, metadata_of
from mmllm.tokens import VideoClip

_PARTS = ("image_processor", "video_processor")
_MOST_TIMES = 200
"""The longer edge of a frame is at most so many times the shorter one. Qwen's processors refuse others themselves; most
would first enlarge the frame until its shorter edge is theirs."""
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedVideo:
    """A clip as a processor prepared it."""

    clip: VideoClip
    times: Times
    still: bool = False
    """Whether the clip is one still image."""
    remembered: Mapping[str, Any]
    """Part of the processor -> what it returned, without the values of pixels."""
    inputs: Mapping[str, Any]
    """What the processor gave for a prompt with this video alone, with pixels; empty once the tower has seen them."""


class Prompting:
    """What a transformers processor does for questions about one video.

    Args:
        processor: of the model.
        family: of the model.

    Raises:
        ConfigError: if the processor has no chat template, or lacks the part that prepares this family's frames.
    """

    def __init__(self, processor: Any, family: HostFamily) -> None:
        self.processor, self.family = processor, family
        part = "video_processor" if family.reads_videos else "image_processor"
        if getattr(processor, part, None) is None:
            raise ConfigError(f"{type(processor).__name__} has no {part}: it cannot prepare the frames of a video")
        if not (processor.chat_template or getattr(processor.tokenizer, "chat_template", None)):
            raise ConfigError(f"{type(processor).__name__} has no chat template: questions cannot be written")

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def frames_together(self) -> int:
        """Frames of a temporal grid."""
        part = getattr(self.processor, "video_processor", None)
        return (getattr(part, "temporal_patch_size", None) or 1) if self.family.reads_videos else 1

    def prepare(self, clip: VideoClip, times: Times = "own", *, still: bool = False) -> PreparedVideo:
        """The clip for the tower and for prompts.

        Args:
            clip: T frames at the size at which they are decoded; the processor brings them to the model's.
            times: whose times the frames get.
            still: whether the clip is one still image.

        Raises:
            InputError: if the processor cannot take these frames; the message says why.
        """
        edges = clip.frames.shape[1:3]
        if max(edges) > _MOST_TIMES * min(edges):
            raise InputError(
                f"{type(self.processor).__name__} cannot prepare {_described(clip.frames)}: the longer edge may be at "
                f"most {_MOST_TIMES} times the shorter one"
            )
        parts = {name: _Remembering(part) for name in _PARTS if (part := getattr(self.processor, name, None))}
        messages = [{"role": "user", "content": self.content(len(clip), "?", still=still)}]
        inputs = self._process(parts, messages, self._media(clip, times, still))
        remembered = {name: _hollow(part.outputs) for name, part in parts.items() if part.outputs is not None}
        return PreparedVideo(
            clip=clip, times=times, still=still, remembered=remembered, inputs=self.family.mended(inputs)
        )

    def inputs(self, video: PreparedVideo, messages: Messages) -> dict[str, Any]:
        """The prompt of a conversation about a prepared video, B = 1, without pixels.

        Raises:
            InputError: if the chat template refuses the conversation.
        """
        parts = {
            name: _Remembering(getattr(self.processor, name), outputs) for name, outputs in video.remembered.items()
        }
        inputs = self._process(parts, messages, self._media(video.clip, video.times, video.still))
        return {name: value for name, value in inputs.items() if not is_pixels(name)}

    def text_inputs(self, messages: Messages) -> dict[str, Any]:
        """The prompt of a conversation without media, B = 1.

        Raises:
            InputError: if the chat template or the processor refuses the conversation.
        """
        return self._process({}, messages, {})

    def content(self, frames: int, text: str, *, still: bool = False) -> list[dict[str, str]]:
        """The turn that holds the video: the video or its frames, then the text; an image if it is still."""
        kinds = ["video"] if self.family.reads_videos and not still else ["image"] * frames
        return [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]

    def plain(self, text: str) -> str:
        """The text with a space inside everything that the tokenizer would read as a special token."""
        own = [getattr(self.processor, name, None) for name in ("image_token", "video_token")]
        special = dict.fromkeys([*self.tokenizer.all_special_tokens, *filter(None, own)])
        pattern = "|".join(re.escape(token) for token in special)
        return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text) if special else text

    def _media(self, clip: VideoClip, times: Times, still: bool) -> dict[str, Any]:
        """The arguments of a processor that are the clip."""
        if still or not self.family.reads_videos:
            return {"images": list(clip.frames)}
        frames = self._filled(clip)
        metadata = metadata_of(frames, times)
        beside = {} if metadata is None else {"video_metadata": [metadata]}
        return {"videos": [frames.frames], "do_sample_frames": False, **beside}

    def _process(self, parts: Mapping[str, _Remembering], messages: Messages, media: dict[str, Any]) -> dict[str, Any]:
        """What a copy of the processor with other parts gives for one conversation."""
        processor = copy.copy(self.processor)
        for name, part in parts.items():
            setattr(processor, name, part)
        try:
            text = processor.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        except Exception as problem:  # a template is a program and may raise anything
            raise InputError(f"the chat template refuses this conversation: {_short(problem)}") from None
        options: dict[str, Any] = {"return_tensors": "pt"}
        if (begin := self.tokenizer.bos_token) is not None and text.startswith(begin):
            options["add_special_tokens"] = False
        try:
            return dict(processor(text=[text], **media, **options))
        except (ValueError, TypeError, RuntimeError, IndexError) as problem:
            what = _described(media.get("images") or next(iter(media.get("videos", ())), ()))
            raise InputError(f"{type(self.processor).__name__} cannot prepare {what}: {_short(problem)}") from problem

    def _filled(self, clip: VideoClip) -> VideoClip:
        """The clip; one with fewer frames than a temporal grid repeats its last, which some processors demand."""
        from mmllm.hosting.times import part_of_clip

        if len(clip) >= self.frames_together:
            return clip
        return part_of_clip(clip, np.arange(self.frames_together).clip(max=len(clip) - 1))


class _Remembering:
    """A part of a processor that notes what it returns, or returns what was noted.

    Args:
        part: the part; all else is asked of it.
        outputs: what it is to return; None to run it.
    """

    def __init__(self, part: Any, outputs: Any = None) -> None:
        self.part, self.outputs = part, outputs

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the part returns; a copy, because a processor writes into it."""
        if self.outputs is None:
            self.outputs = self.part(*arguments, **options)
        return BatchFeature({name: _copied(name, value) for name, value in self.outputs.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


def _copied(name: str, value: Any) -> Any:
    """A value that its reader may write into; tensors are only read."""
    if name == "video_metadata":
        return copy.deepcopy(value)
    return list(value) if isinstance(value, list) else value


def _hollow(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs whose pixels keep their shape, but hold no memory: a prompt depends on shapes only."""
    return {name: _emptied(value) if is_pixels(name) else _copied(name, value) for name, value in outputs.items()}


def _emptied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.new_zeros(()).expand(value.shape)
    if isinstance(value, np.ndarray):
        return np.broadcast_to(np.zeros((), value.dtype), value.shape)
    return [_emptied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _described(pictures: Sequence[np.ndarray] | np.ndarray) -> str:
    """How many pictures of which size, for messages."""
    if not len(pictures):
        return "this text"
    height, width = pictures[0].shape[:2]
    return f"{len(pictures)} frames of {width} x {height}"


def _short(problem: BaseException) -> str:
    return f"{' '.join(str(problem).split()):.300}" or type(problem).__name__


def collated(prompts: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Prompts of one row each as rows B N, padded in front.

    Args:
        prompts: what `Prompting.inputs` gives.
        pad_token_id: id of the padding.
    """
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)
    rows: dict[str, Tensor] = {}
    for name in ROW_INPUTS:
        if name not in prompts[0]:
            continue
        filling = pad_token_id if name == "input_ids" else 0
        values = [prompt[name] for prompt in prompts]
        rows[name] = torch.cat(
            [torch.nn.functional.pad(value, (length - value.shape[1], 0), value=filling) for value in values]
        )
    return rows
