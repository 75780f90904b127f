"""Videos and images to what the encoder takes.

V videos, I images, K tiles of an image or pieces of text before a frame, T frames, S side of the encoder's input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmllm.preprocessing.clip_reader import ClipReader
from mmllm.preprocessing.frames import FrameTransform, read_image
from mmllm.preprocessing.tiles import cut
from mmllm.tokens import VideoClip


class MediaInputs:
    """What the processor does with videos and images; its options are those of `MmllmProcessor`."""

    tokenizer: PreTrainedTokenizerBase
    frame_transform: FrameTransform
    num_frames: int
    folder_fps: float
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
        return replace(reader, num_frames=num_frames or self.num_frames)(video, **limits)

    def clip_reader(self) -> ClipReader:
        """What `load` does with a file, to be sent to other processes."""
        return ClipReader(num_frames=self.num_frames, transform=self.frame_transform, folder_fps=self.folder_fps)

    def video_inputs(self, clips: Sequence[VideoClip]) -> dict[str, Tensor]:
        """Model inputs of clips; shorter ones repeat their last frame, masked."""
        longest = max((len(clip) for clip in clips), default=0)
        pixels, mask, times_s = [], [], []
        for clip in clips:
            index = np.minimum(np.arange(longest), len(clip) - 1)
            frames = self.frame_transform.video(clip.frames)
            pixels.append(frames if len(clip) == longest else frames[index])
            mask.append(np.arange(longest) < len(clip))
            times_s.append(clip.times_s[index])
        inputs = {
            "pixel_values_videos": torch.from_numpy(np.stack(pixels)),
            "video_frame_mask": torch.from_numpy(np.stack(mask)),
            "video_times_s": torch.from_numpy(np.stack(times_s)).float(),
            "video_durations_s": torch.tensor([clip.duration_s for clip in clips], dtype=torch.float32),
        }
        text = self.frame_text(times_s)
        return inputs if text is None else {**inputs, "video_frame_text": text}

    def frame_text(self, times_s: Sequence[Sequence[float] | np.ndarray]) -> Tensor | None:
        """int64, V T K: ids of what is written before each frame of videos of T frames, filled up by -1.

        Args:
            times_s: when each frame is shown, V T.

        Returns:
            None if nothing is written there.
        """
        texts = [self.writing.before_frames(times) for times in times_s]
        if not any(texts):
            return None
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest = max(len(one) for frames in ids for one in frames)
        return torch.tensor([[one + [-1] * (longest - len(one)) for one in frames] for frames in ids])

    def image_inputs(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Model inputs of images given as paths, PIL images or uint8 arrays.

        Returns:
            `pixel_values`, float I 3 S S. With `pinpoints`, I K 3 S S: each image whole and then its tiles, zero behind
            its last one; and `image_tiling`, int64 I 4: rows and columns of tiles, height and width in pixels.
        """
        pictures = [read_image(image) for image in images]
        if self.pinpoints is None:
            return {"pixel_values": torch.from_numpy(np.concatenate([self.frame_transform(p[None]) for p in pictures]))}
        canvases = [(height, width) for height, width in self.pinpoints]
        cuts = [cut(picture, canvases, tile=self.frame_transform.size) for picture in pictures]
        tiles = [torch.from_numpy(self.frame_transform(tiles)) for tiles, _ in cuts]
        return {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True),
            "image_tiling": torch.tensor([tiling.as_row for _, tiling in cuts]),
        }
