"""A frame of a stream as it comes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmllm.video.live.clock import Gap


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveFrame:
    """A frame that was taken from a stream."""

    pixels: np.ndarray
    """uint8, H W 3, upright RGB with square pixels."""
    time_s: float
    """When it is shown, in seconds since the stream's first frame."""
    arrived_s: float
    """`time.monotonic()` when it was decoded."""
    gap: Gap | None = None
    """The gap before it, if there is one."""
