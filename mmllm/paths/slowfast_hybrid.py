"""Slow-Fast's tokens: a pooled copy in the sequence, all tokens beside it (arXiv 2504.01328).

    frames   T, each a grid of H x W patches -> pool x pool averages, h x w
    slow     T * h * w tokens, beside the sequence: stages inside the LLM attend to them
    fast     frames sampled, averaged in groups, pooled again -> the sequence that the LLM reads

LITA's path of the same name (`slowfast`) has all of its tokens in the sequence.

B videos, T frames, N tokens of a frame, h w grid after pooling, F fast frames, L fast tokens, S slow tokens,
D LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VideoPath
from mmllm.registry import register
from mmllm.tokens import VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True)
class SlowFastHybridConfig:
    """The defaults are those of the released model for 64 frames (s1t4)."""

    pool: int = 2
    """Patches of each frame of a video are averaged pool x pool; a single frame keeps all of them."""
    sampling_stride: int = 1
    """Fast tokens take one frame in so many."""
    temporal_stride: int = 4
    """So many neighbouring frames are averaged to one fast frame."""
    spatial_stride: int = 1
    """Fast frames are averaged once more, spatial_stride x spatial_stride."""
    min_fast_frames: int = 16
    """Sampling and averaging over time leave at least so many frames, or all if there are fewer."""

    def __post_init__(self) -> None:
        for name in ("pool", "sampling_stride", "temporal_stride", "spatial_stride", "min_fast_frames"):
            require(getattr(self, name) >= 1, self, name, "at least 1")


@register("path", "slowfast-hybrid", config=SlowFastHybridConfig)
class SlowFastHybridPath(VideoPath):
    """Slow-Fast's tokens: fast ones in the sequence, slow ones beside it, for cross-attention inside the LLM."""

    gives_states: ClassVar[bool] = True

    def __init__(self, config: SlowFastHybridConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """One block `fast` of the features B T N D; the slow tokens are its `cross_attention_states`.

        An average is over the tokens that are there. Where none is, the fast or slow token is masked.

        Raises:
            InputError: if the tokens have no grid, or one smaller than a pool; if an image was cut into tiles; if a
                video has no token.
        """
        if tokens.tiling is not None:
            raise InputError("slowfast-hybrid reads frames of a video, not tiles of an image: use anyres or plain")
        if tokens.grid is None:
            self._refuse_pools("1D tokens have no patch grid")
            features, present = tokens.features.unsqueeze(3), tokens.mask.unsqueeze(3)  # B T N 1 (D)
        else:
            features, present = tokens.on_grid()
        videos = [
            self._video(features[video, frames], present[video, frames], frames)
            for video, frames in enumerate(_frames_of_each(tokens.frame_mask))
        ]
        fast, slow = [video[0] for video in videos], [video[1] for video in videos]
        grids = {(part.shape[1], part.shape[2]) for part in fast}
        grid = None if tokens.grid is None or len(grids) > 1 else grids.pop()
        embeddings, mask, frame = _in_batch(fast)
        states, states_mask, states_frame = _in_batch(slow)
        places = [repeat(torch.arange(math.prod(part.shape[1:])), "n -> (f n)", f=len(part.frame)) for part in fast]
        return VisualSequence(
            embeddings=embeddings,
            mask=mask,
            frame=frame,
            blocks=(("fast", embeddings.shape[1]),),
            place=None if grid is None else pad_sequence(places, batch_first=True).to(mask.device),
            grid=grid,
            cross_attention_states=states,
            cross_attention_mask=states_mask,
            cross_attention_frame=states_frame,
        )

    def _video(self, features: Tensor, present: Tensor, frame: Tensor) -> tuple[_Frames, _Frames]:
        """Fast and slow tokens of one video, of features T H W D that are `present` (bool, T H W)."""
        config = self.config
        slow = _Frames(features, present, frame)
        if len(frame) > 1:
            slow = slow.pooled(config.pool)
        sampled = torch.tensor(sampled_frames(len(frame), config.sampling_stride, config.min_fast_frames))
        fast = slow.taken(sampled.to(frame.device))
        groups = frame_groups(len(sampled), config.temporal_stride, config.min_fast_frames)
        if len(groups) < len(sampled):
            fast = fast.averaged(groups)
        return fast.pooled(config.spatial_stride), slow

    def _refuse_pools(self, reason: str) -> None:
        if self.config.pool > 1 or self.config.spatial_stride > 1:
            raise InputError(f"{reason} to pool: set pool=1,spatial_stride=1, or choose an encoder with patches")

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The number of fast tokens of a video of `frames` frames."""
        config = self.config
        sampled = len(sampled_frames(frames, config.sampling_stride, config.min_fast_frames))
        groups = len(frame_groups(sampled, config.temporal_stride, config.min_fast_frames))
        _, fast = self._of_a_frame(frames, grid, tokens_per_frame)
        return {"fast": groups * fast}

    def beside_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The number of slow tokens of a video of `frames` frames."""
        return {"slow": frames * self._of_a_frame(frames, grid, tokens_per_frame)[0]}

    def _of_a_frame(self, frames: int, grid: Grid, tokens_per_frame: int) -> tuple[int, int]:
        """Slow and fast tokens of a frame."""
        if grid is None:
            self._refuse_pools("1D tokens have no patch grid")
            return tokens_per_frame, tokens_per_frame
        slow = _pooled_grid(grid, self.config.pool) if frames > 1 else grid
        return math.prod(slow), math.prod(_pooled_grid(slow, self.config.spatial_stride))


def sampled_frames(frames: int, stride: int, least: int) -> list[int]:
    """Numbers of the frames that fast tokens are made of: one in `stride`, and at least `least` if there are so many.

    Raises:
        InputError: if there is no frame.
    """
    if frames < 1:
        raise InputError(f"fast tokens need a video of at least 1 frame, not {frames}")
    if stride == 1 or frames == 1 or frames < least:
        return list(range(frames))
    count = max(frames // stride, least)
    return [min(math.floor(i * (frames / count)), frames - 1) for i in range(count)]


def frame_groups(frames: int, stride: int, least: int) -> list[range]:
    """Frames that are averaged to one: `stride` neighbours each, a remainder is left out; or `least` equal parts.

    Parts are taken where groups would be fewer than `least`; they may overlap by a frame. All frames are parts of
    their own if there are no more than `least`.
    """
    if stride == 1 or frames == 1:
        return [range(i, i + 1) for i in range(frames)]
    if (whole := frames // stride) >= least:
        return [range(i * stride, (i + 1) * stride) for i in range(whole)]
    count = min(frames, least)
    return [range(i * frames // count, -(-(i + 1) * frames // count)) for i in range(count)]


@dataclass(frozen=True, eq=False)
class _Frames:
    """Tokens of some frames of one video on their grid."""

    features: Tensor
    """F h w D."""
    present: Tensor
    """bool, F h w. False where a frame has no token."""
    frame: Tensor
    """int64, F. The frame that each shows; of several, the middle one."""

    @property
    def shape(self) -> torch.Size:
        return self.present.shape

    def taken(self, index: Tensor) -> _Frames:
        """The frames with these numbers."""
        return _Frames(self.features[index], self.present[index], self.frame[index])

    def pooled(self, side: int) -> _Frames:
        """Averages of side x side cells; rows and columns that do not fill one are left out.

        Raises:
            InputError: if the grid is smaller.
        """
        if side == 1:
            return self
        h, w = _pooled_grid(tuple(self.shape[1:]), side)
        cells = "f (h y) (w x) d -> f h w (y x) d"
        features = rearrange(self.features[:, : h * side, : w * side], cells, y=side, x=side)
        present = rearrange(self.present[:, : h * side, : w * side, None], cells, y=side, x=side)
        return _Frames(*_mean(features, present.squeeze(-1), axis=3), self.frame)

    def averaged(self, groups: list[range]) -> _Frames:
        """The average of each group of frames."""
        means = [_mean(self.features[g.start : g.stop], self.present[g.start : g.stop], axis=0) for g in groups]
        middle = torch.tensor([(g.start + g.stop - 1) // 2 for g in groups], device=self.frame.device)
        features, present = (torch.stack(part) for part in zip(*means, strict=True))
        return _Frames(features, present, self.frame[middle])


def _mean(features: Tensor, present: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean along one axis over the tokens that are present, and whether there is any."""
    weight = present.unsqueeze(-1).to(features.dtype)
    return (features * weight).sum(axis) / weight.sum(axis).clamp(min=1), present.any(axis)


def _pooled_grid(grid: tuple[int, ...], side: int) -> tuple[int, int]:
    """Rows and columns after pooling.

    Raises:
        InputError: naming the grid and the pool.
    """
    if min(grid) < side:
        raise InputError(f"a {grid[0]}x{grid[1]} patch grid is smaller than a {side}x{side} pool")
    return grid[0] // side, grid[1] // side


def _frames_of_each(frame_mask: Tensor) -> list[Tensor]:
    """The numbers of the frames (int64) of each video (bool, B T).

    Raises:
        InputError: if a video has none.
    """
    frames = [row.nonzero().squeeze(1) for row in frame_mask]
    if not all(len(numbers) for numbers in frames):
        raise InputError("a video of the batch has no visual token left")
    return frames


def _in_batch(videos: list[_Frames]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens B L D of videos, frame by frame, their mask (B L) and the frame of each (B L; -1 at padding)."""
    return (
        pad_sequence([rearrange(video.features, "f h w d -> (f h w) d") for video in videos], batch_first=True),
        pad_sequence([rearrange(video.present, "f h w -> (f h w)") for video in videos], batch_first=True),
        pad_sequence(
            [repeat(video.frame, "f -> (f n)", n=math.prod(video.shape[1:])) for video in videos],
            batch_first=True,
            padding_value=-1,
        ),
    )
