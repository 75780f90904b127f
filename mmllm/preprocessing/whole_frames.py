"""Frames as they are decoded, for a model whose own processor brings them to its size.

H W height and width of a frame
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class WholeFrames:
    """Keeps frames; very large ones are scaled down, so that memory stays bounded."""

    longest_edge: int = 4096
    """Most pixels of a frame's longer edge."""

    def __post_init__(self) -> None:
        require(self.longest_edge > 0, self, "longest_edge", "a positive number of pixels")

    def video_frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H W 3): the frame."""
        height, width = frame.shape[:2]
        if max(height, width) <= self.longest_edge:
            return frame
        scale = self.longest_edge / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
