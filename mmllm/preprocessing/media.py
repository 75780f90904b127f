"""Videos to clips at the encoder's size, and what is written before their frames.

V videos, K ids of the text before a frame, T frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmllm.preprocessing.clip_reader import ClipReader
from mmllm.preprocessing.frames import FrameTransform
from mmllm.tokens import VideoClip


class MediaReading:
    """What a modality needs of the processor to read media; its options are those of `MmllmProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    frame_transform: FrameTransform
    num_frames: int
    folder_fps: float
    folder_rates: Mapping[str, float] = MappingProxyType({})
    """Path of a folder of frames -> images a second, where it is another rate. Whoever reads annotations sets it."""
    pinpoints: list[list[int]] | None
    writing: Any

    def load(self, video: Any, num_frames: int | None = None, **limits: Any) -> VideoClip:
        """Frames of a video, sampled evenly over it and brought to the encoder's size while decoding.

        Args:
            video: anything `mmllm.open_video` takes, or a folder of frames; a `VideoClip` is only resized.
            num_frames: how many; the processor's own number if None.
            limits: `start_s` and `end_s`, to look at a part only.
        """
        if isinstance(video, VideoClip):
            return replace(video, frames=np.stack([self.frame_transform.video_frame(frame) for frame in video.frames]))
        reader = self.clip_reader()
        return replace(reader, num_frames=self.num_frames if num_frames is None else num_frames)(video, **limits)

    def clip_reader(self) -> ClipReader:
        """What `load` does with a file, to be sent to other processes."""
        return ClipReader(
            num_frames=self.num_frames,
            transform=self.frame_transform,
            folder_fps=self.folder_fps,
            folder_rates=dict(self.folder_rates),
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
