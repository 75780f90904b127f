"""The values that flow between the stages: decoded frames, visual tokens, and the sequence that the LLM reads.

B videos or images, T frames, N tokens of a frame, D width, L tokens of a sequence, S tokens beside the sequence or
samples of sound, A audio tokens of a frame, E width of audio tokens, H W C height width colours
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from mmllm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a position without a loss."""
SAMPLE_RATE = 16_000
"""Samples of sound a second, everywhere behind the decoder."""
NOWHERE = -1
"""Frame and place of text."""
PATCHLESS = -2
"""Place of a visual token that shows no patch, such as the end of a row."""
HEARD = -3
"""Place of a token of sound."""
TIME_TEXT = -4
"""Place of the text before a frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """Decoded frames and the time at which each is shown.

    Raises:
        ValueError: if shapes or types do not fit together, or a time is not finite or goes backwards.
    """

    frames: np.ndarray
    """uint8, T H W C, RGB, upright."""
    times_s: np.ndarray
    """float64, T. Presentation time of each frame in seconds; the file's first visible frame is at 0."""
    duration_s: float
    """Length of the whole video in seconds. The frames may cover less."""
    valid: np.ndarray = None  # type: ignore[assignment]
    """bool, T. False for a repeated frame: the video has fewer frames than were requested."""
    source: str = ""
    """The source of the frames, for messages."""
    in_order: bool = True
    """False if the frames were requested in another order than that of time. Only then may times go backwards."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    waveform: np.ndarray | None = None
    """float32, S. The sound, mono, at `SAMPLE_RATE`, about -1 to 1; None if there is none, or it was not read."""
    waveform_start_s: float = 0.0
    """The instant of the sound's first sample, on the clock of `times_s`. Above 0 if only a part was read."""
    original_size: tuple[int, int] = None  # type: ignore[assignment]
    """Height and width in pixels before frames were resized, cropped or padded; by default those of `frames`."""

    def __post_init__(self) -> None:
        if self.original_size is None:
            object.__setattr__(self, "original_size", self.frames.shape[1:3])
        if self.frames.ndim != 4 or self.frames.dtype != np.uint8 or self.frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (T H W 3), not {self.frames.dtype} {self.frames.shape}")
        times_s = np.asarray(self.times_s, dtype=np.float64)
        if times_s.shape != (len(self.frames),):
            raise ValueError(f"{len(self.frames)} frames need {len(self.frames)} times, not shape {times_s.shape}")
        if not np.isfinite(times_s).all() or (self.in_order and (np.diff(times_s) < 0).any()):
            raise ValueError(f"times_s must be finite and must not go backwards: {times_s}")
        if not (np.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"duration_s must be a positive number of seconds, not {self.duration_s}")
        object.__setattr__(self, "times_s", times_s)
        if self.valid is None:
            object.__setattr__(self, "valid", np.ones(len(self.frames), dtype=bool))
        elif self.valid.shape != (len(self.frames),):
            raise ValueError(f"valid must have one entry for each of {len(self.frames)} frames, not {self.valid.shape}")
        if self.waveform is not None:
            self._check_waveform(self.waveform)

    def _check_waveform(self, waveform: np.ndarray) -> None:
        if waveform.ndim != 1 or waveform.dtype != np.float32 or not len(waveform):
            raise ValueError(f"waveform must be float32 (S) with samples, not {waveform.dtype} {waveform.shape}")
        if not np.isfinite(waveform).all():
            raise ValueError("waveform must be finite, and some samples are infinite or NaN")
        if not (np.isfinite(self.waveform_start_s) and self.waveform_start_s >= 0):
            raise ValueError(f"waveform_start_s must be zero or more seconds, not {self.waveform_start_s}")

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        t, h, w, _ = self.frames.shape
        sound = "" if self.waveform is None else f"sound of {len(self.waveform) / SAMPLE_RATE:.2f} s, "
        return f"VideoClip({t} frames {w}x{h}, {self.duration_s:.2f} s, {sound}{self.source!r})"


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How one image was cut."""

    rows: int
    """Rows of tiles; 0 for an image that is not cut."""
    cols: int
    height: int
    """Height of the original image in pixels."""
    width: int

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0 or (self.rows == 0) != (self.cols == 0):
            raise InputError(f"{self.rows}x{self.cols} tiles: both numbers must be positive, or both zero")
        if self.height < 1 or self.width < 1:
            raise InputError(f"an image of {self.height}x{self.width} pixels cannot be tiled: both must be at least 1")

    @property
    def partitions(self) -> int:
        """Number of partitions: the whole image and its tiles."""
        return 1 + self.rows * self.cols

    @property
    def as_row(self) -> tuple[int, int, int, int]:
        """The four numbers that `tilings_of` reads."""
        return self.rows, self.cols, self.height, self.width

    @property
    def transposed(self) -> Tiling:
        """Rows and columns exchanged, height and width not: the layout of the mosaic in HiRED's release."""
        return Tiling(rows=self.cols, cols=self.rows, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True, eq=False)
class VisualTokens:
    """Tokens of a batch of videos or images, with the place and the time of each.

    Every stage takes one and returns one. Kept tokens stay in raster order, frames in time order. Frames or videos with
    different budgets are padded: `mask` marks the padding, and tokens are never reordered.
    """

    features: Tensor
    """B T N D."""
    grid: tuple[int, int] | None
    """Rows and columns of the patch grid before any reduction; None for 1D tokens, which have no place on a grid."""
    index: Tensor = field(default=None)  # type: ignore[assignment]
    """int64, B T N. Raster position of each token in `grid`."""
    mask: Tensor = field(default=None)  # type: ignore[assignment]
    """bool, B T N. False where a token is padding."""
    times_s: Tensor | None = None
    """float, B T. Presentation time of each frame in seconds."""
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> B T N. Scores of each token's importance from the encoder, such as `cls_attention`. `keys`, B T N K, are
    the tokens' keys in the encoder's attention, mean over heads."""
    size: Tensor | None = None
    """float, B T N. Number of patches that a token stands for; None if no tokens were merged."""
    tiling: tuple[Tiling, ...] | None = None
    """For images in tiles, how each of the B was cut. The first of the T is the whole image, then its tiles follow."""
    audio: Tensor | None = None
    """float, B T A E. Features of the sound from each frame to the next, before any projection; zero where there is no
    sound. None without sound, or without an audio encoder."""
    audio_mask: Tensor | None = None
    """bool, B T. True for frames with sound; given with `audio`."""
    still: bool = False
    """Whether these are images, not videos."""
    frame_size: Tensor | None = None
    """int64, B 2. Height and width in pixels of frames before they were padded to a square; None if that is unknown or
    frames were not padded."""
    similarity: Tensor | None = None
    """float32, B T. Cosine similarity of each frame's scene features to those of the next frame; 0 at the last frame
    and at padding. None where no part asks for it."""
    text_tokens: Tensor | None = None
    """int64, B. Tokens of text that the LLM reads beside each video; None if that is unknown."""
    question: Tensor | None = None
    """int64, B Q. Ids of the question about each video, which some parts read; -1 fills up. None if no part does."""
    words: Tensor | None = None
    """float, B Q D. The LLM's embeddings of these ids, at filling anything; None where no part asks for them."""

    def __post_init__(self) -> None:
        if self.features.ndim != 4:
            raise ValueError(f"features must be (B T N D), not {tuple(self.features.shape)}")
        b, t, n, _ = self.features.shape
        if self.index is None:
            if self.grid is not None and self.grid[0] * self.grid[1] != n:
                raise ValueError(f"{n} tokens a frame do not fill a {self.grid[0]}x{self.grid[1]} grid: pass index")
            positions = self.features.new_ones(n).cumsum(0).long() - 1
            object.__setattr__(self, "index", positions.expand(b, t, n))
        if self.mask is None:
            object.__setattr__(self, "mask", self.index >= 0)
        for name, value in {"index": self.index, "mask": self.mask, "size": self.size, **self.scores}.items():
            if value is not None and value.shape[: 3 if name in self.scores else None] != (b, t, n):
                raise ValueError(f"{name} must be {(b, t, n)} like the features, not {tuple(value.shape)}")
        if self.audio is not None and (self.audio.ndim != 4 or self.audio.shape[:2] != (b, t)):
            raise ValueError(f"audio must be {(b, t)} by tokens by width, not {tuple(self.audio.shape)}")
        if self.audio is not None and self.audio_mask is None:
            object.__setattr__(self, "audio_mask", self.mask.any(-1))
        self._check_videos(b, t)

    def _check_videos(self, b: int, t: int) -> None:
        """Refuses what belongs to frames and videos in another shape."""
        frames = dict.fromkeys(("times_s", "audio_mask", "similarity"), (b, t))
        shapes: dict[str, tuple[int, ...]] = {**frames, "frame_size": (b, 2), "text_tokens": (b,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(value.shape)}")
        if self.question is not None and (self.question.ndim != 2 or len(self.question) != b):
            raise ValueError(f"question must be ({b} Q), not {tuple(self.question.shape)}")
        if self.words is not None and (self.question is None or self.words.shape[:2] != self.question.shape):
            raise ValueError(f"words must be embeddings of the ids of the question, not {tuple(self.words.shape)}")
        if self.tiling is not None and (len(self.tiling) != b or any(cut.partitions > t for cut in self.tiling)):
            partitions = [cut.partitions for cut in self.tiling]
            raise ValueError(f"tiling must describe {b} images of at most {t} partitions, not {partitions}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B T N D."""
        b, t, n, d = self.features.shape
        return b, t, n, d

    @property
    def about_frames(self) -> dict[str, Any]:
        """The fields that belong to frames and videos, for a stage that makes new tokens of each frame."""
        return {name: getattr(self, name) for name in _ABOUT_FRAMES}

    @property
    def frame_mask(self) -> Tensor:
        """bool, B T. True for frames with at least one token that is not padding."""
        return self.mask.any(dim=-1)

    @property
    def complete(self) -> bool:
        """True while no stage has dropped, merged or padded a token of the grid. A traced program never knows."""
        n = self.features.shape[2]
        if self.grid is None or n != self.grid[0] * self.grid[1] or self.size is not None:
            return False
        from torch import compiler

        if compiler.is_exporting():
            return False
        return bool((self.index.diff(dim=-1) == 1).all() and self.mask.all())

    def replace(self, **changes: Any) -> VisualTokens:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_sound_of(self, other: VisualTokens) -> VisualTokens:
        """The same tokens with the audio features of `other`, which has the same videos and frames."""
        return self if other.audio is None else self.replace(audio=other.audio, audio_mask=other.audio_mask)

    def take(self, kept: Tensor, mask: Tensor | None = None) -> VisualTokens:
        """The tokens at positions `kept` (B T K, int64) of the token axis, with their index, scores and sizes.

        Args:
            kept: positions to keep in each frame, ascending.
            mask: bool, B T K. False where an entry of `kept` is only padding.
        """
        valid = self.mask.gather(-1, kept)
        return self.replace(
            features=self.features.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, self.features.shape[-1])),
            index=self.index.gather(-1, kept),
            mask=valid if mask is None else valid & mask,
            scores={name: _taken(value, kept) for name, value in self.scores.items()},
            size=None if self.size is None else self.size.gather(-1, kept),
        )

    def on_grid(self) -> tuple[Tensor, Tensor]:
        """Features on the patch grid (B T H W D, zero where a patch was dropped), and a mask of patches (B T H W).

        Raises:
            ValueError: for 1D tokens, which have no place on a grid.
        """
        if self.grid is None:
            raise ValueError("1D tokens have no place on a patch grid: choose a path that does not pool in space")
        h, w = self.grid
        b, t, n, d = self.shape
        if self.complete:
            return rearrange(self.features, "b t (h w) d -> b t h w d", h=h), self.mask.view(b, t, h, w)
        slots = self.index.where(self.mask, h * w)  # padding goes to an extra slot, which is cut off
        features = self.features.new_zeros(b, t, h * w + 1, d)
        features = features.scatter(2, slots.unsqueeze(-1).expand(b, t, n, d), self.features)[:, :, :-1]
        present = self.mask.new_zeros(b, t, h * w + 1).scatter(2, slots, self.mask)[:, :, :-1]
        return rearrange(features, "b t (h w) d -> b t h w d", h=h), rearrange(present, "b t (h w) -> b t h w", h=h)


def _taken(values: Tensor, kept: Tensor) -> Tensor:
    """Values B T N or B T N K at positions B T K of the token axis."""
    if values.ndim == kept.ndim:
        return values.gather(-1, kept)
    return values.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, values.shape[-1]))


_ABOUT_FRAMES = ("times_s", "question", "words", "still", "frame_size", "similarity", "text_tokens")
"""Fields of `VisualTokens` that do not change with the tokens of a frame, besides sound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VisualSequence:
    """The sequence that the LLM reads for each video: tokens in reading order."""

    embeddings: Tensor
    """B L D, of the LLM's width."""
    mask: Tensor
    """bool, B L. False where a position is padding."""
    frame: Tensor
    """int64, B L. The frame that a token shows, or the middle one of a few neighbours; -1 for a token of others."""
    blocks: tuple[tuple[str, int], ...]
    """Name and length of each run of positions, in order; the lengths add up to L."""
    place: Tensor | None = None
    """int64, B L. Raster position of each token on its frame's `grid`; negative for a token without a patch. None if
    tokens were pooled."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the grid of `place`."""
    frame_text: Tensor | None = None
    """int64, B F K. Ids of the text that the LLM reads before the tokens of each frame, padded with -1."""
    cross_attention_states: Tensor | None = None
    """B S D. Tokens that are not in the sequence: stages inside the LLM attend to them. None without such tokens."""
    cross_attention_mask: Tensor | None = None
    """bool, B S. False where one of these is padding; given with them."""
    cross_attention_frame: Tensor | None = None
    """int64, B S. The frame that each of these shows, or -1; None if no frame is meant."""

    def __post_init__(self) -> None:
        b, length, width = self.embeddings.shape
        if self.mask.shape != (b, length) or self.frame.shape != (b, length):
            raise ValueError(f"mask and frame must be {(b, length)}: {self.mask.shape}, {self.frame.shape}")
        if self.grid is not None and self.place is None:
            raise ValueError(f"tokens on a {self.grid} grid need their place")
        if sum(count for _, count in self.blocks) != length:
            raise ValueError(f"blocks {self.blocks} do not add up to {length} positions")
        self._check_beside(b, width)

    def _check_beside(self, videos: int, width: int) -> None:
        """Refuses tokens beside the sequence whose shapes do not fit it, or whose mask is missing."""
        states, mask, frame = self.cross_attention_states, self.cross_attention_mask, self.cross_attention_frame
        if states is None:
            if mask is not None or frame is not None:
                raise ValueError("a mask or frames of cross_attention_states are given without them")
            return
        if states.ndim != 3 or states.shape[0] != videos or states.shape[2] != width:
            raise ValueError(f"cross_attention_states must be ({videos} S {width}), not {tuple(states.shape)}")
        for name, value in (("cross_attention_mask", mask), ("cross_attention_frame", frame)):
            given = None if value is None else tuple(value.shape)
            if given != states.shape[:2] and not (name == "cross_attention_frame" and given is None):
                raise ValueError(f"{name} must be {tuple(states.shape[:2])}, not {given}")

    def block(self, name: str) -> slice:
        """The positions of a named block.

        Raises:
            KeyError: if the path made no such block.
        """
        start = 0
        for block, count in self.blocks:
            if block == name:
                return slice(start, start + count)
            start += count
        raise KeyError(f"no block {name!r}; this path makes {[block for block, _ in self.blocks]}")

    def check_places(self) -> None:
        """Refuses a place outside the grid, and two tokens of one frame at the same place.

        A token without a patch has a negative place.

        Raises:
            ValueError: naming the video and the place.
        """
        if self.grid is None or self.place is None:
            return
        count = self.grid[0] * self.grid[1]
        for video, (places, frames, valid) in enumerate(zip(self.place, self.frame, self.mask, strict=True)):
            placed = valid & (places >= 0)
            sorted_places = (frames * count + places)[placed].sort().values
            repeated = sorted_places[1:][sorted_places.diff() == 0] % count
            outside = places[placed & (places >= count)]
            if len(repeated) or len(outside):
                error = (
                    f"two tokens of place {int(repeated[0])}"
                    if len(repeated)
                    else f"a token of place {int(outside[0])}"
                )
                raise ValueError(f"video {video} has {error} in one frame of a {self.grid[0]}x{self.grid[1]} grid")

    def beside(self, video: int) -> Tensor | None:
        """S D: the `cross_attention_states` of one video, without padding; None if there are none."""
        if self.cross_attention_states is None or self.cross_attention_mask is None:
            return None
        return self.cross_attention_states[video][self.cross_attention_mask[video]]

    def select(self, rows: Tensor) -> VisualSequence:
        """The videos with the indices `rows` (int64). An index may repeat, for several questions about a video."""
        return dataclasses.replace(
            self,
            embeddings=self.embeddings[rows],
            mask=self.mask[rows],
            frame=self.frame[rows],
            **{name: value[rows] for name in _EACH_VIDEO if (value := getattr(self, name)) is not None},
        )


_EACH_VIDEO = ("place", "frame_text", "cross_attention_states", "cross_attention_mask", "cross_attention_frame")
"""Fields of `VisualSequence` that may be None and otherwise have an entry for each video."""
