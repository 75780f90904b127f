"""Encoders of frames.

B videos, T frames, N tokens of a frame, C encoder width, Q ids of a question, F frames run at once
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor, nn

from mmllm.interfaces.part import Part

Grid = tuple[int, int] | None
"""Rows and columns of patches; None for 1D tokens."""
FRAMES_AT_ONCE = 32
"""F of an encoder whose configuration does not choose it."""


class Encoder(Part, nn.Module):
    """Frames to patch features. Sets `width` and `grid` when it is built."""

    width: int
    """C, of the features."""
    grid: Grid
    """Rows and columns of the patches; None for 1D tokens."""
    score_names: Collection[str] = frozenset()
    """Kinds of scores that it can compute cheaply: `cls_attention`, `mean_attention`, `probe_attention`."""
    class_count: int = 0
    """K: how many of the C channels, the last, are scores of a classifier's classes; 0 without a classifier."""
    runs_encoder_stage: ClassVar[bool] = False
    """Whether `forward` takes an `EncoderStage` as `inside`."""
    has_text_tower: ClassVar[bool] = False
    """Whether a text tower was trained with it that its patch features can be compared with, as with CLIP's."""
    load_pretrained: Any = None
    """Method `(source)` that loads published weights, for encoders of other packages; None for our own."""
    reach: int = 0
    """How many frames before and after a frame its features depend on. If there are any, `forward` takes `margins`: the
    numbers of frames at both ends that are only looked at and get no features."""

    @property
    def chunk(self) -> int:
        """F: frames that it runs at once, the field `chunk` of its configuration if there is one.

        A long video is encoded in multiples of it, and so exactly as in one call.
        """
        return getattr(self.config, "chunk", FRAMES_AT_ONCE)

    @property
    def index(self) -> Tensor | None:
        """int64, N. Raster positions of a frame's tokens; None if they are the whole grid in order, or 1D tokens."""
        return None

    @property
    def tower_widths(self) -> tuple[int, ...]:
        """Widths of the towers whose features are side by side in the width C."""
        return (self.width,)

    @property
    def scene_channels(self) -> slice:
        """Which of the C channels show best where a scene ends; all by default."""
        return slice(None)

    @property
    def tokens_per_frame(self) -> int:
        """N. An encoder of 1D tokens has to say it."""
        if self.index is not None:
            return len(self.index)
        if self.grid is None:
            raise NotImplementedError(f"{type(self).__name__}.tokens_per_frame: 1D tokens have no grid to count")
        return self.grid[0] * self.grid[1]
