"""Videos: frames with the times at which they are shown, as pixels or as features of a frozen encoder.

V videos, T frames, S side of the encoder's input, N tokens of a frame, C encoder width,
K ids of the text before a frame, L samples of sound, A audio tokens of a frame, E their width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.modalities.inputs import ModalityInputs
from mmllm.modalities.modality import Modality, Stages, in_lists
from mmllm.preprocessing.media import PIXEL_OPTIONS, MediaReading
from mmllm.preprocessing.memory_video import is_in_memory
from mmllm.preprocessing.question_reader import filled_up
from mmllm.preprocessing.video_options import VIDEO_OPTIONS
from mmllm.registry import register
from mmllm.tokens import VideoClip, VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInputs(ModalityInputs):
    """The videos of a batch, all with T frames; a shorter video repeats its last frame, masked.

    Raises:
        InputError: if there are neither pixels nor features, there are both, or shapes do not fit together.
    """

    pixels: Tensor | None = None
    """float, V T 3 S S."""
    frame_mask: Tensor | None = None
    """bool, V T. False at frames that pad a shorter video."""
    times_s: Tensor | None = None
    """float, V T. When each frame is shown, in seconds."""
    durations_s: Tensor | None = None
    """float, V. Lengths of the whole videos, in seconds; needed by the grounding loss."""
    frame_text: Tensor | None = None
    """int64, V T K. Ids of the text that is read before each frame; -1 fills up."""
    features: Tensor | None = None
    """float, V T N C. Features of the frozen encoder, in place of pixels."""
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> V T N. The features' scores, where a reducer needs some."""
    waveform: Tensor | None = None
    """float32, V L. The sound, mono at 16 kHz; sample 0 is the instant 0 of the video's clock, or `waveform_start_s`.
    Shorter sound, and a video without sound, is filled up with zeros."""
    waveform_length: Tensor | None = None
    """int64, V. Samples of each video's sound; 0 for a video without sound."""
    waveform_start_s: Tensor | None = None
    """float, V. The instant of sample 0 in seconds, if only a part of a video is looked at."""
    audio: Tensor | None = None
    """float, V T A E. Features of a frozen audio encoder, in place of the sound."""
    audio_mask: Tensor | None = None
    """bool, V T. True for frames with sound; belongs to `audio`."""
    frame_size: Tensor | None = None
    """int64, V 2. Height and width in pixels before the frames were padded, for models that leave padding out."""
    text_tokens: Tensor | None = None
    """int64, V. Tokens of text beside each video, for paths that leave room for it; the model counts them itself."""
    question: Tensor | None = None
    """int64, V Q. The question about each video, as `QuestionReader` writes it, for parts that read it; -1 fills up."""

    modality: ClassVar[str] = "video"
    flat_names: ClassVar[Mapping[str, str]] = {
        "pixels": "pixel_values_videos",
        "frame_mask": "video_frame_mask",
        "times_s": "video_times_s",
        "durations_s": "video_durations_s",
        "frame_text": "video_frame_text",
        "features": "video_features",
        "scores": "video_scores",
        "waveform": "video_waveform",
        "waveform_length": "video_waveform_length",
        "waveform_start_s": "video_waveform_start_s",
        "audio": "video_audio",
        "audio_mask": "video_audio_mask",
        "frame_size": "video_frame_size",
        "text_tokens": "video_text_tokens",
        "question": "video_question",
    }
    cached: ClassVar[tuple[str, ...]] = ("features", "scores", "audio", "audio_mask")
    exact: ClassVar[tuple[str, ...]] = ("times_s", "durations_s", "waveform", "waveform_start_s")

    def __post_init__(self) -> None:
        if (self.pixels is None) == (self.features is None):
            given = "neither" if self.pixels is None else "both"
            raise InputError(f"videos need either pixel_values_videos or video_features; given: {given}")
        self.require_shape("pixels", None, None, 3, None, None)
        self.require_shape("features", None, None, None, None)
        v, t = self._frames_given.shape[:2]
        self.require_shape("frame_mask", v, t)
        self.require_shape("times_s", v, t)
        self.require_shape("durations_s", v)
        self.require_shape("frame_text", v, t, None)
        self.require_shape("frame_size", v, 2)
        self.require_shape("text_tokens", v)
        if self.scores and self.features is None:
            raise InputError("video_scores belong to video_features, and there are none")
        self.require_shape("scores", v, t, self._frames_given.shape[2])
        self.require_shape("question", v, None)
        self._check_sound(v, t)

    def _check_sound(self, videos: int, frames: int) -> None:
        if self.waveform is not None and self.audio is not None:
            raise InputError("videos need either video_waveform or video_audio; given: both")
        self.require_shape("waveform", videos, None)
        self.require_shape("waveform_length", videos)
        self.require_shape("waveform_start_s", videos)
        self.require_shape("audio", videos, frames, None, None)
        self.require_shape("audio_mask", videos, frames)
        for name, whole in (("waveform_length", "waveform"), ("waveform_start_s", "waveform"), ("audio_mask", "audio")):
            if getattr(self, name) is not None and getattr(self, whole) is None:
                raise InputError(f"{self.flat_names[name]} belongs to {self.flat_names[whole]}, and there is none")
        if self.waveform is not None and self.times_s is None:
            raise InputError("video_waveform needs video_times_s beside it: sound belongs to frames by their times")

    @property
    def _frames_given(self) -> Tensor:
        frames = self.features if self.pixels is None else self.pixels
        assert frames is not None
        return frames

    @property
    def frames(self) -> int:
        """T."""
        return self._frames_given.shape[1]

    @classmethod
    def padded(cls, inputs: Sequence[Self]) -> list[Self]:
        """The same videos, equally long and with texts of one width; each with its mask.

        If one of them has sound, the others get sound of no length.
        """
        inputs = _with_equal_sound(inputs)
        longest = max(video.frames for video in inputs)
        widest = max((video.frame_text.shape[2] for video in inputs if video.frame_text is not None), default=0)
        words = max((video.question.shape[1] for video in inputs if video.question is not None), default=0)
        return [video._filled_up(longest, widest, words) for video in inputs]

    def _filled_up(self, frames: int, text: int, words: int) -> Self:
        """The videos with their last frame repeated, masked, up to `frames`.

        There is room for `text` ids before each frame, and for questions of `words` ids.
        """
        instants = torch.arange(frames, device=self._frames_given.device)
        valid, sources = instants < self.frames, instants.clamp(max=self.frames - 1)
        longer = self
        if frames > self.frames:
            longer = self.mapped(lambda value: value[:, sources.to(value.device)], but=_NO_FRAMES)
        mask, ids = longer.frame_mask, longer.frame_text
        return dataclasses.replace(
            longer,
            frame_mask=valid.expand(len(self), frames) if mask is None else mask & valid.to(mask.device),
            frame_text=None if ids is None else torch.nn.functional.pad(ids, (0, text - ids.shape[2]), value=-1),
            question=None if self.question is None else filled_up(self.question, words),
        )

    @property
    def lengths_s(self) -> list[float]:
        """Lengths of the whole videos, if they are known."""
        return [] if self.durations_s is None else self.durations_s.tolist()

    @property
    def frame_fraction(self) -> Tensor | None:
        """float, V T. When each frame is shown, as a share of its video's length.

        Raises:
            InputError: if there are times and no lengths.
        """
        if self.times_s is None:
            return None
        if self.durations_s is None:
            raise InputError("the grounding loss needs video_durations_s beside video_times_s")
        return self.times_s / self.durations_s.unsqueeze(1)


_SOUND = ("waveform", "waveform_length", "waveform_start_s")
_NO_FRAMES = ("durations_s", "frame_size", "text_tokens", "question", *_SOUND)
"""Fields of `VideoInputs` without an entry for each frame."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Nothing to choose: the processor has the settings for sampling videos."""


@register("modality", "video", config=VideoConfig)
class Video(Modality[VideoInputs]):
    """Videos, sampled evenly over their length."""

    inputs = VideoInputs
    argument: ClassVar[str] = "videos"
    options: ClassVar[tuple[str, ...]] = (*VIDEO_OPTIONS, *PIXEL_OPTIONS)

    def __init__(self, config: VideoConfig) -> None:
        self.config = config

    def listed(self, given: Any) -> tuple[list[Any], list[int] | None]:
        """All videos, in order; a list of pictures is one video, an array or tensor of five axes is several."""
        if getattr(given, "ndim", 0) == 5:
            given = list(given)
        return in_lists(given, _is_video)

    def load(self, processor: MediaReading, source: Any, **options: Any) -> VideoInputs:
        """Inputs of one video: whatever `MediaReading.load` takes."""
        processor.require_pixels(options)
        chosen = {name: value for name, value in options.items() if name not in PIXEL_OPTIONS}
        return clip_inputs(processor, processor.load(source, **chosen))

    def encode(self, model: Stages, inputs: VideoInputs) -> VisualSequence:
        """The visual tokens of V videos, as the LLM reads them."""
        return dataclasses.replace(model.arrange(video_tokens(model, inputs)), frame_text=inputs.frame_text)


def _with_equal_sound(inputs: Sequence[VideoInputs]) -> list[Any]:
    """The same videos, all with the same fields of sound, as long as the longest."""
    longest = max((video.waveform.shape[1] for video in inputs if video.waveform is not None), default=0)
    widths = {video.audio.shape[2:] for video in inputs if video.audio is not None}
    if not longest and not widths:
        return list(inputs)
    filled = []
    for video in inputs:
        v, t = len(video), video.frames
        changes: dict[str, Any] = {}
        if longest and video.audio is None:
            wave = torch.zeros(v, 0) if video.waveform is None else video.waveform
            length = torch.full((v,), wave.shape[1]) if video.waveform_length is None else video.waveform_length
            start_s = torch.zeros(v) if video.waveform_start_s is None else video.waveform_start_s
            missing = longest - wave.shape[1]
            changes = {"waveform": torch.nn.functional.pad(wave, (0, missing)) if missing else wave}
            changes |= {"waveform_length": length, "waveform_start_s": start_s}
        elif widths and video.audio is None:
            changes = {"audio": torch.zeros(v, t, *next(iter(widths))), "audio_mask": torch.zeros(v, t).bool()}
        elif video.audio_mask is None:
            changes = {"audio_mask": torch.ones(v, t, dtype=torch.bool)}
        filled.append(dataclasses.replace(video, **changes))
    return filled


def _is_video(value: Any) -> bool:
    return value is not None and (not isinstance(value, (list, tuple)) or is_in_memory(value))


def clip_inputs(processor: MediaReading, clip: VideoClip) -> VideoInputs:
    """Inputs of one clip that `MediaReading.load` gave."""
    sound: dict[str, Any] = {}
    if clip.waveform is not None:
        sound["waveform"] = torch.from_numpy(clip.waveform).unsqueeze(0)
        sound["waveform_length"] = torch.tensor([len(clip.waveform)])
        sound["waveform_start_s"] = torch.tensor([clip.waveform_start_s], dtype=torch.float32)
    return VideoInputs(
        pixels=torch.from_numpy(processor.frame_transform.video(clip.frames)).unsqueeze(0),
        frame_mask=torch.ones(1, len(clip), dtype=torch.bool),
        times_s=torch.from_numpy(clip.times_s).float().unsqueeze(0),
        durations_s=torch.tensor([clip.duration_s], dtype=torch.float32),
        frame_text=processor.frame_text([clip.times_s]),
        **sound,
    )


def video_tokens(model: Stages, inputs: VideoInputs, *, every_frame: bool = False) -> VisualTokens:
    """Features V T N C and, with sound, V T A E: computed from pixels and sound, or those that were computed earlier.

    Args:
        model: its stages.
        inputs: the videos.
        every_frame: also encode frames that the path will not read.

    Raises:
        InputError: if there is sound and the model has no audio encoder.
    """
    frame_mask = inputs.frame_mask if every_frame else frames_read(model, inputs)
    return with_sound(model, inputs, _picture_tokens(model, inputs, frame_mask), frame_mask)


def with_sound(model: Stages, inputs: VideoInputs, tokens: VisualTokens, frame_mask: Tensor | None) -> VisualTokens:
    """The tokens with audio features of the videos' sound, if there is some.

    Args:
        model: its audio encoder is used.
        inputs: the videos.
        tokens: of the pictures.
        frame_mask: bool, V T. The sound of a frame that is not read belongs to the frame before it.
    """
    if inputs.audio is not None:
        return tokens.replace(audio=inputs.audio, audio_mask=inputs.audio_mask)
    if inputs.waveform is None:
        return tokens
    assert inputs.times_s is not None
    audio, mask = model.hear(
        inputs.waveform, inputs.times_s, frame_mask, inputs.waveform_length, inputs.waveform_start_s
    )
    return tokens.replace(audio=audio, audio_mask=mask)


def _picture_tokens(model: Stages, inputs: VideoInputs, frame_mask: Tensor | None) -> VisualTokens:
    beside: dict[str, Any] = {"frame_size": inputs.frame_size, "text_tokens": inputs.text_tokens}
    if inputs.features is None:
        assert inputs.pixels is not None
        return model.encode(inputs.pixels, frame_mask, inputs.times_s, question=inputs.question).replace(**beside)
    shape = inputs.features.shape[:3]
    index = model.encoder.index
    places = {} if index is None else {"index": index.to(inputs.features.device).expand(shape)}
    tokens = VisualTokens(
        features=inputs.features,
        grid=model.encoder.grid,
        times_s=inputs.times_s,
        scores=inputs.scores,
        question=inputs.question,
        **places,
        **beside,
    )
    if inputs.frame_mask is None:
        return tokens
    return tokens.replace(mask=inputs.frame_mask.unsqueeze(-1).expand(shape))


def frames_read(model: Stages, inputs: VideoInputs) -> Tensor | None:
    """bool, V T. The frames that the model's path reads; None for all, without a mask."""
    mask = inputs.frame_mask
    every = inputs._frames_given.new_ones(len(inputs), inputs.frames, dtype=torch.bool) if mask is None else mask
    read = model.path.frames_read(every, inputs.text_tokens)
    return mask if read is every else read
