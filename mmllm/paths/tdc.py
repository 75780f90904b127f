"""TDC: the first frame of a few keeps all its tokens, each later one is squeezed to K tokens that read the question.

    video      cut into scenes where neighbours differ most, each scene into windows of 8 frames
    window     [first frame, all tokens] s [K] s [K] s ...        s: a learned separator behind each frame

A clip of few frames keeps all tokens of all frames: then every frame is a scene of its own. If the whole is longer than
the LLM reads, each window loses the same number of tokens at its end.

B videos, T frames, P frames that are read, N tokens of a frame, K context tokens, A audio tokens of a frame,
Q ids of the question, D LLM width, M tokens of a video
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VideoPath
from mmllm.paths.frame_rows import FrameRows, frame_rows
from mmllm.paths.qformer import QFormerSizes
from mmllm.paths.scenes import Scenes, cut, most_windows, spread
from mmllm.paths.tdc_compressor import Compressor
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.registry import register
from mmllm.tokens import HEARD, PATCHLESS, VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True)
class TdcConfig:
    """Temporal Dynamic Context (2025); the defaults are those of the released models."""

    cuts: int = 24
    """Most cuts between scenes."""
    window: int = 8
    """Frames of a window, the first of which keeps its tokens."""
    tokens: int = 16
    """K: context tokens of each later frame."""
    queries: Literal["pooled", "learned"] = "pooled"
    """Where the Q-Former's queries come from: averages of the window's first frame, or learned ones."""
    add_static: bool = True
    """Whether first frames keep their tokens; otherwise they are squeezed, too."""
    newline: bool = True
    """End each row of a frame's patches with a learned vector. 1D tokens have no rows."""
    text_input: bool = True
    """Whether the Q-Former reads the question."""
    question_source: str | None = "google-bert/bert-base-uncased"
    """Tokenizer of questions for the Q-Former."""
    question_words: tuple[str, ...] = ()
    """The words of a small vocabulary, in place of `question_source`."""
    most_words: int = 256
    """Most ids of a question; a longer one is cut off."""
    empty_question: tuple[int, ...] = (101, 102)
    """Ids of an empty question: BERT's [CLS] and [SEP]. A vocabulary of `question_words` has none."""
    max_frames: int = 224
    """Most frames that are read of a video."""
    frame_tokens: int = 144
    """Tokens of a frame by which it is judged how many frames fit; row ends are not counted, as published."""
    max_length: int = 8192
    """Positions that the LLM reads: visual tokens and text."""
    reserve: int = 16
    """Positions that stay free."""
    text_tokens: int = 64
    """Tokens of text for which room is left where their number is not known."""
    audio: bool = False
    """Whether the path reads the sound of each frame; the model then needs an audio encoder."""
    audio_tokens: int = 50
    """Audio tokens of a frame, for the limit of frames."""
    width: int = 768
    """Width of the Q-Former."""
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    vocabulary: int = 30522
    """Ids that the Q-Former knows; with `question_words`, that follows from them."""
    positions: int = 512
    """Positions of text that the Q-Former knows."""
    cross_every: int = 2
    """The Q-Former looks at visual tokens in every so many layers."""

    def __post_init__(self) -> None:
        for field in ("cuts", "window", "tokens", "max_frames", "frame_tokens", "max_length", "most_words", "layers"):
            require(getattr(self, field) >= 1, self, field, "at least 1")
        for field in ("mlp_width", "vocabulary", "cross_every", "audio_tokens", "heads"):
            require(getattr(self, field) >= 1, self, field, "at least 1")
        for field in ("reserve", "text_tokens"):
            require(getattr(self, field) >= 0, self, field, "zero or more")
        require(self.tokens <= self.frame_tokens, self, "tokens", f"at most frame_tokens = {self.frame_tokens}")
        require(self.width > 0 and self.width % self.heads == 0, self, "width", f"divisible by heads = {self.heads}")
        require(self.positions >= self.most_words, self, "positions", f"at least most_words = {self.most_words}")

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """How questions are written for it; None if it reads none."""
        if not self.text_input:
            return None
        source = None if self.question_words else self.question_source
        return QuestionReaderConfig(source=source, words=self.question_words, most_words=self.most_words)

    @property
    def qformer(self) -> QFormerSizes:
        """Sizes of the Q-Former."""
        reader = self.question_reader
        return QFormerSizes(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            mlp_width=self.mlp_width,
            vocabulary=reader.vocabulary_size if reader is not None and self.question_words else self.vocabulary,
            positions=self.positions,
            cross_every=self.cross_every,
        )

    def frames_that_fit(self, text_tokens: int) -> int:
        """The most frames that are read beside so many tokens of text (without the placeholder)."""
        whole = self.frame_tokens + (self.audio_tokens if self.audio else 0)
        mean = (whole + (self.window - 1) * self.tokens) // self.window if self.add_static else self.tokens
        room = self.max_length - (text_tokens + 1) - self.reserve
        return min(self.max_frames, max(1, room // mean))

    def budget(self, text_tokens: int) -> int:
        """The most tokens of a video beside so many tokens of text.

        Raises:
            InputError: if there is room for none.
        """
        room = self.max_length - self.reserve - text_tokens
        if room < 1:
            raise InputError(
                f"{text_tokens} tokens of text leave no room for a video: the LLM reads max_length = "
                f"{self.max_length}, and {self.reserve} stay free"
            )
        return room


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some tokens of one frame: features M D, and the place of each (int64, M)."""

    features: Tensor
    place: Tensor
    frame: int


@register("path", "tdc", config=TdcConfig)
class TdcPath(VideoPath):
    """Scenes in windows: all tokens of a window's first frame, a few that read the question of each later one (TDC)."""

    needs_similarity = True
    counts_text = True
    changeable_settings: ClassVar[tuple[str, ...]] = (
        "cuts",
        "window",
        "add_static",
        "max_frames",
        "frame_tokens",
        "max_length",
        "reserve",
        "text_tokens",
    )

    def __init__(self, config: TdcConfig, *, width: int, audio_width: int | None = None) -> None:
        super().__init__()
        if config.audio and audio_width is None:
            raise ConfigError("TdcConfig.audio = True: sound needs an audio_encoder in the model, and there is none")
        self.config = config
        self.reads_audio = config.audio
        self.compressor = Compressor(config.qformer, width=width, tokens=config.tokens, queries=config.queries)
        self.frame_seg = nn.Parameter(torch.randn(width) * width**-0.5)
        self.newline = nn.Parameter(torch.randn(width) * width**-0.5) if config.newline else None
        self.audio_proj = nn.Linear(audio_width, width) if config.audio and audio_width else None

    def frames_read(self, frame_mask: Tensor, text_tokens: Tensor | None = None) -> Tensor:
        """bool, B T. Frames at equal steps, as many as fit beside the text."""
        read = torch.zeros_like(frame_mask)
        for b, mask in enumerate(frame_mask):
            present = mask.nonzero().squeeze(1)
            read[b, present[spread(len(present), self.config.frames_that_fit(self._text(text_tokens, b)))]] = True
        return read

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Features B T N D to one block `scenes`: windows in time order, each frame ended by a separator.

        Args:
            tokens: whole or reduced frames, with their `similarity`; with `question` if the Q-Former reads it.

        Raises:
            InputError: for tiles of an image, a video without a frame, frames of fewer than K tokens, or a text that
                leaves no room.
        """
        if tokens.tiling is not None:
            raise InputError("tdc reads frames of a video, not tiles of an image: use the anyres or plain path")
        videos = [self._video(tokens, b) for b in range(len(tokens.features))]
        features = pad_sequence([features for features, _, _ in videos], batch_first=True)
        places, frames = (
            pad_sequence([video[i] for video in videos], batch_first=True, padding_value=-1) for i in (1, 2)
        )
        lengths = torch.tensor([len(video[0]) for video in videos], device=features.device)
        mask = torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1)
        return VisualSequence(
            embeddings=features,
            mask=mask,
            frame=frames,
            blocks=(("scenes", features.shape[1]),),
            place=places,
            grid=tokens.grid,
        )

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """The largest number of tokens of a video of `frames` frames, wherever its scenes end, without sound."""
        config = self.config
        read = min(frames, config.frames_that_fit(config.text_tokens))
        windows = most_windows(read, config.cuts, config.window)
        ends = grid[0] if grid is not None and config.newline else 0
        whole = windows if config.add_static else 0
        total = whole * (tokens_per_frame + ends) + (read - whole) * config.tokens + read
        return {"scenes": min(total, config.budget(config.text_tokens))}

    def scenes(self, tokens: VisualTokens, video: int) -> Scenes:
        """How a video is cut.

        Raises:
            InputError: if it has no frame, or the similarity of its frames is missing.
        """
        present = tokens.frame_mask[video].nonzero().squeeze(1)
        if not len(present):
            raise InputError(f"video {video} of the batch has no frame to read")
        if tokens.similarity is None:
            raise InputError("tdc needs the similarity of neighbouring frames (VisualTokens.similarity)")
        similarity = tokens.similarity[video, present[:-1]]
        return cut(similarity, present.tolist(), cuts=self.config.cuts, window=self.config.window)

    def _text(self, text_tokens: Tensor | None, video: int) -> int:
        return self.config.text_tokens if text_tokens is None else int(text_tokens[video])

    def _video(self, tokens: VisualTokens, video: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features M D, places M and frames M of one video."""
        budget = self.config.budget(self._text(tokens.text_tokens, video))
        scenes = self.scenes(tokens, video)
        rows = frame_rows(tokens, video, scenes.read, self.newline)
        sound = self._sound(tokens, video, scenes.read)
        context = self._context(rows, sound, scenes, self._question(tokens, video))
        windows = [
            [
                piece
                for frame in range(first, first + count)
                for piece in self._frame(frame, scenes.read[frame], rows, sound, context)
            ]
            for first, count in scenes.windows
        ]
        return _within(windows, budget)

    def _frame(
        self, row: int, frame: int, rows: FrameRows, sound: Tensor | None, context: dict[int, Tensor]
    ) -> list[_Piece]:
        """The tokens of one frame and the separator behind them."""
        end = _unplaced(self.frame_seg.unsqueeze(0), frame)
        if row in context:
            return [_unplaced(context[row], frame), end]
        whole = _Piece(rows.of(row), rows.places(row), frame)
        return [whole, end] if sound is None else [whole, _unplaced(sound[row], frame, HEARD), end]

    def _sound(self, tokens: VisualTokens, video: int, read: Sequence[int]) -> Tensor | None:
        """P A D: audio tokens of each frame; None without sound."""
        audio, heard = tokens.audio, tokens.audio_mask
        if self.audio_proj is None or audio is None or heard is None or not bool(heard[video].any()):
            return None
        return self.audio_proj(audio[video, list(read)].to(self.audio_proj.weight.dtype))  # a frame without has zeros

    def _question(self, tokens: VisualTokens, video: int) -> Tensor | None:
        """int64, Q. Ids of the question; None if it is not read."""
        if not self.config.text_input:
            return None
        if tokens.question is None:
            raise InputError(
                "tdc reads the question about each video (VisualTokens.question); text_input=false does not"
            )
        ids = tokens.question[video]
        ids = ids[ids >= 0]
        if len(ids) or self.config.question_words:
            return ids
        return ids.new_tensor(self.config.empty_question)

    def _context(
        self, rows: FrameRows, sound: Tensor | None, scenes: Scenes, question: Tensor | None
    ) -> dict[int, Tensor]:
        """Number of each squeezed frame among those that are read -> its K D context tokens."""
        squeezed: list[int] = []
        queries: list[Tensor] = []
        for first, count in scenes.windows:
            later = range(first + self.config.add_static, first + count)
            if later:
                squeezed += later
                queries.append(self.compressor.queries_of(rows.of(first)).expand(len(later), -1, -1))
        if not squeezed:
            return {}
        frames, mask = rows.features[squeezed], rows.mask[squeezed]
        if sound is not None:
            frames = torch.cat([frames, sound[squeezed]], dim=1)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], sound.shape[1])], dim=1)
        seen = None if bool(mask.all()) else mask
        return dict(zip(squeezed, self.compressor(torch.cat(queries), frames, seen, question), strict=True))


def _unplaced(features: Tensor, frame: int, place: int = PATCHLESS) -> _Piece:
    """Tokens of a frame that show no patch, all with the same place."""
    return _Piece(features, torch.full((len(features),), place, dtype=torch.long, device=features.device), frame)


def _within(windows: Sequence[Sequence[_Piece]], budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, places and frames of all windows, at most `budget` tokens.

    If there are more, every window loses as many at its end, and what is still too much is cut off at the very end.
    """
    lengths = [sum(len(piece.features) for piece in window) for window in windows]
    excess = sum(lengths) - budget
    lost = -(-excess // len(windows)) if excess > 0 else 0
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for window, length in zip(windows, lengths, strict=True):
        frames = [torch.full_like(piece.place, piece.frame) for piece in window]
        whole = ([piece.features for piece in window], [piece.place for piece in window], frames)
        for part, values in zip(parts, whole, strict=True):
            part.append(torch.cat(values)[: max(0, length - lost)])
    features, places, frame = (torch.cat(part)[:budget] for part in parts)
    return features, places, frame
