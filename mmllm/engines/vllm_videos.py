"""Our reader among vLLM's video backends: frames chosen by the model's rule, each with the time at which it is shown.

vLLM's own readers take a frame's number over the average rate for its time, which is wrong where a file's rate varies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.video.opening import open_video
from mmllm.video.sampling import FrameRule


class VideoFrames:
    """vLLM calls `load_bytes` with the options of `--media-io-kwargs '{"video": {...}}'`."""

    @classmethod
    def load_bytes(
        cls, data: bytes, num_frames: int = 100, sampling: Any = None, **options: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Frames (uint8, T H W 3) of a video file and their metadata, in which a second has one frame.

        So the number of each frame is its time in seconds, exact as it was read.

        Args:
            data: the file.
            num_frames: how many frames the rule may choose.
            sampling: how they are chosen, such as `slow-fast:fps=2` (see `FrameRule`); LITA's rule if None.
            options: refused by name.

        Raises:
            VideoError: if the file cannot be read.
            InputError: if an option is not read here.
        """
        if options:
            raise InputError(f"{next(iter(options))} is no option of mmllm's video reader; num_frames and sampling are")
        with open_video(data) as video:
            clip = video.sample_uniform(num_frames, rule=FrameRule.of(sampling))
        return clip.frames, seconds_as_numbers(clip.times_s, clip.duration_s)


def seconds_as_numbers(times_s: np.ndarray, duration_s: float) -> dict[str, Any]:
    """Metadata of frames that are shown at `times_s` (float64, T) of a video, in the form of vLLM's readers."""
    return {
        "fps": 1.0,
        "duration": duration_s,
        "total_num_frames": len(times_s),
        "frames_indices": times_s.tolist(),
        "video_backend": "mmllm",
        "do_sample_frames": False,
    }
