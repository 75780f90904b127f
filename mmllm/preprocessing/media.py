"""Videos to clips at the encoder's size, and what is written before their frames.

V videos, K ids of the text before a frame, T frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmllm.errors import InputError
from mmllm.preprocessing.addresses import resolved
from mmllm.preprocessing.clip_reader import ClipReader
from mmllm.preprocessing.frames import FrameTransform, read_image
from mmllm.preprocessing.memory_video import is_in_memory, memory_video
from mmllm.preprocessing.video_options import at_rate, checked, refuse, refuse_both
from mmllm.tokens import VideoClip
from mmllm.video.names import existing
from mmllm.video.opening import FrameFolder, FrameSink, SoundOptions, VideoOpenError
from mmllm.video.sampling import UNIFORM, FrameRule

PIXEL_OPTIONS = ("max_pixels", "min_pixels")
"""Bounds of the pixels of a picture, as Qwen's processors take them."""


class MediaReading:
    """What a modality needs of the processor to read media; its options are those of `MmllmProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    frame_transform: FrameTransform
    num_frames: int
    frame_rule: FrameRule = UNIFORM
    """How frames of a video are chosen."""
    folder_fps: float
    folder_rates: Mapping[str, float] = MappingProxyType({})
    """Path of a folder of frames -> images a second, where it is another rate. Whoever reads annotations sets it."""
    pinpoints: list[list[int]] | None
    writing: Any
    sound: SoundOptions | None = None
    """Which sound of videos is read; None for a model that does not hear."""
    frame_sizes: bool = False
    """Whether the size of frames before they were padded is given with their pixels."""

    def rule_of(self, num_frames: int | None) -> FrameRule:
        """How frames are chosen if so many are asked for, or None for the processor's own number."""
        return self.frame_rule

    def load(
        self,
        video: Any,
        num_frames: int | None = None,
        *,
        fps: float | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        audio: bool | None = None,
        sampling: Any = None,
        sink: FrameSink | None = None,
    ) -> VideoClip:
        """Frames of a video, sampled evenly over it and brought to the encoder's size while decoding.

        Args:
            video: anything `mmllm.open_video` takes, a `data:` address, a folder of frames, or frames in memory (arrays
                or tensors T H W K or T K H W, lists of pictures). A `VideoClip` is only resized.
            num_frames: how many; the processor's own number if None.
            fps: of frames in memory and folders of images their own rate; of a video file, and of frames with
                `video_metadata`, how many frames a second are sampled.
            start_s, end_s: the part of the video that is looked at, in seconds.
            video_metadata: fields of transformers' `VideoMetadata`, for frames in memory.
            do_sample_frames: False takes all frames in memory.
            audio: whether the sound of a file is read, too; by default if the model hears. A file without sound is read
                as it is. A `VideoClip` has its sound already.
            sampling: how frames are chosen, such as `slow-fast:fps=2` (see `FrameRule`); the processor's own rule if
                None.
            sink: takes the prepared frames of a file or folder as they are decoded, if it wants them; the clip then has
                frames (T 0 0 3). Frames in memory are returned together.

        Raises:
            InputError: if the source cannot be read, or an option does not fit it.
        """
        wanted = {"num_frames": num_frames, "fps": fps, "start_s": start_s, "end_s": end_s}
        wanted |= {"video_metadata": video_metadata, "do_sample_frames": do_sample_frames}
        wanted |= {"sampling": sampling, "audio": audio}
        given = {name: checked(name, value) for name, value in wanted.items() if value is not None}
        hears = given.pop("audio", self.sound is not None)
        if hears and self.sound is None:
            raise InputError("audio=True: this model does not hear, because it has no audio encoder; leave audio out")
        sound = self.sound if hears else None
        if isinstance(video, VideoClip):
            if sound is None:
                video = replace(video, waveform=None)
            refuse(given, allowed=(), source="a VideoClip, whose frames are chosen")
            return replace(video, frames=np.stack([self.frame_transform.video_frame(frame) for frame in video.frames]))
        video = resolved(video)
        if isinstance(video, str) and video.lower().startswith(("http://", "https://")):
            raise VideoOpenError(
                f"{video}: an address, not a file; download it first",
                in_python="or give the frames of open_video(address, allow_url=True)",
            )
        if isinstance(video, (np.ndarray, Tensor)) and video.ndim != 4:
            raise InputError(f"a video in memory must be (T H W K) or (T K H W), not {tuple(video.shape)}")
        if is_in_memory(video):
            return self._frames_in_memory(video, **given)
        refuse(
            given,
            allowed=("num_frames", "fps", "start_s", "end_s", "sampling"),
            source="a video file",
            but={"do_sample_frames": True},
        )
        limits = {name: given[name] for name in ("start_s", "end_s") if name in given}
        frames, rule = given.get("num_frames", self.num_frames), given.get("sampling", self.frame_rule)
        reader = replace(self.clip_reader(), num_frames=frames, rule=rule, sound=sound)
        if "fps" not in given:
            return reader(video, sink=sink, **limits)
        if isinstance(video, (str, Path)) and (folder := existing(video)) is not None and folder.is_dir():
            return replace(reader, folder_fps=given["fps"], folder_rates={})(video, sink=sink, **limits)
        if isinstance(video, FrameFolder):
            allowed = ("num_frames", "start_s", "end_s", "sampling")
            refuse(given, allowed=allowed, source="a FrameFolder, which has its own rate")
        refuse_both(given, "num_frames", "fps")
        refuse_both(given, "sampling", "fps")
        return at_rate(video, given["fps"], start_s, end_s, self.frame_transform.video_frame, sink, sound)

    def _frames_in_memory(
        self,
        video: Any,
        num_frames: int | None = None,
        fps: float | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool = True,
        sampling: FrameRule | None = None,
    ) -> VideoClip:
        """The clip of frames in memory; see `load`."""
        frames = memory_video(video, fps=fps, metadata=video_metadata)
        inside = frames.part(start_s, end_s)
        if not do_sample_frames:
            if num_frames is not None:
                raise InputError(f"do_sample_frames=False takes all frames, and num_frames={num_frames} beside it")
            indices = inside
        elif frames.has_metadata and fps is not None:
            refuse_both({"num_frames": num_frames, "fps": fps}, "num_frames", "fps")
            indices = frames.at_rate(fps, start_s, end_s)
        else:
            rule = self.frame_rule if sampling is None else sampling
            indices = inside[rule.indices(len(inside), frames.rate, num_frames or self.num_frames)]
        return frames.clip(indices, self.frame_transform.video_frame, read_image)

    def require_pixels(self, options: Mapping[str, Any], pixels: int | None = None) -> None:
        """Refuses bounds of a picture's pixels that are not met: the encoder's size follows from its weights.

        Args:
            options: `max_pixels` and `min_pixels`, if they are given.
            pixels: how many the encoder sees of a picture; those of its square if None.

        Raises:
            InputError: naming the bound and the size.
        """
        side = self.frame_transform.size
        seen = pixels or side * side
        for name in PIXEL_OPTIONS:
            value = options.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not value > 0:
                raise InputError(f"{name} must be a positive number of pixels, not {value!r:.80}")
            if (seen > value) if name == "max_pixels" else (seen < value):
                raise InputError(
                    f"{name}={value} cannot be honoured: this encoder sees every picture at {side} x {side} pixels"
                    + ("" if pixels is None else f", in up to {seen // (side * side)} tiles")
                )

    def clip_reader(self) -> ClipReader:
        """What `load` does with a file, to be sent to other processes."""
        return ClipReader(
            num_frames=self.num_frames,
            transform=self.frame_transform,
            folder_fps=self.folder_fps,
            folder_rates=dict(self.folder_rates),
            sound=self.sound,
            rule=self.frame_rule,
        )

    def frame_text(self, times_s: Sequence[Sequence[float] | np.ndarray]) -> Tensor | None:
        """int64, V T K: ids of the text before each frame of videos of T frames, filled up with -1.

        Args:
            times_s: when each frame is shown, V T.

        Returns:
            None if there is no text before any frame.
        """
        texts = [self.writing.before_frames(times) for times in times_s]
        if not any(texts):
            return None
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(len(frame) for video in ids for frame in video)
        return torch.tensor([[frame + [-1] * (longest - len(frame)) for frame in video] for video in ids])
