"""What encoders of 1D tokens have in common: frames from -1 to 1 in, tokens without a grid and without scores out.

B videos, T frames, F frames run at once, N tokens of a frame, C width of a token, S side in pixels
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import FrameOutput, check_pixels, encode_frames, needs_gradient, read_scores
from mmllm.preprocessing.frames import FrameTransform
from mmllm.tokens import VisualTokens


def from_minus_one_to_one(size: int) -> FrameTransform:
    """How pictures are prepared for an image tokenizer: the centre, `size` pixels a side, from -1 to 1."""
    return FrameTransform(size=size, fit="crop", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class FrameTokens(Encoder):
    """The encoder half of an image tokenizer. A subclass writes `tokens`; its config has image_size, tokens, chunk."""

    grid = None
    config: Any

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.config.tokens

    def tokens(self, frames: Tensor) -> Tensor:
        """Tokens F N C of frames F 3 S S."""
        raise NotImplementedError

    def forward(
        self, pixels: Tensor, *, frame_mask: Tensor | None = None, scores: Collection[str] = ()
    ) -> VisualTokens:
        """Tokens B T N C of pixels.

        Args:
            pixels: float, B T 3 S S, from -1 to 1.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: must be empty: 1D tokens have no attention of a class token.

        Raises:
            InputError: for pixels of another size or type, more than 1 % outside of -1 to 1, or any score.
        """
        return self.encoded(self.tokens, pixels, frame_mask, scores)

    def encoded(
        self,
        tokens: Callable[..., Tensor],
        pixels: Tensor,
        frame_mask: Tensor | None,
        scores: Collection[str],
        with_video: bool = False,
    ) -> VisualTokens:
        """What `forward` returns, with the tokens F N C that `tokens` gives for frames F 3 S S.

        With `with_video`, `tokens` also gets the number of each frame's video (int64, F).
        """
        check_pixels(pixels, encoder=self.registered_name, size=self.config.image_size)
        if not torch.compiler.is_exporting() and pixels.numel() and float(pixels.abs().max()) > 1.01:
            largest = float(pixels.abs().max())
            raise InputError(
                f"{self.registered_name} needs pixels from -1 to 1, and the largest is {largest:.3g}: "
                "prepare them with the encoder's own `frames`"
            )
        read_scores(scores, encoder=self.registered_name, offers=())
        return encode_frames(
            lambda *frames: FrameOutput(features=tokens(*frames)),
            pixels,
            grid=None,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self),
            with_video=with_video,
        )
