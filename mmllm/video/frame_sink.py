"""Taking the frames of a long video one by one, so that nobody holds them all.

H W height and width
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class FrameSink(Protocol):
    """Takes the frames of a video as they are decoded, in the order of the sampled indices, repetitions included."""

    def takes(self, count: int) -> bool:
        """Whether it takes the frames of a video of which `count` are sampled. If not, they are returned together.

        Asked before the first frame; and again, if decoding has shown that the frames differ from the file's index.
        Everything that it has taken is then forgotten, and all frames come anew.
        """
        ...

    def put(self, frame: np.ndarray) -> bool:
        """Takes the next frame, uint8 H W 3; True if it has finished a piece, and limits of time begin anew."""
        ...
