"""Encoding a long video while it is decoded: pixels are dropped after each piece, tokens are kept.

    frame, frame, ... -> a piece of frames -> encoder -> reducers that work frame by frame -> tokens of the whole video

T frames, S side of the encoder's input, H W patch grid
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmllm.inference.overlay import ranking_map
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.token_store import TokenStore, piece_of
from mmllm.preprocessing.media import MediaReading
from mmllm.runtime.progress import Progress
from mmllm.tokens import VideoClip, VisualTokens
from mmllm.video.opening import FrameSink

Feed = Callable[[FrameSink], VideoClip]
"""Reads a video: gives its prepared frames to a sink if that takes them, and returns the clip."""
WHOLE_FRAMES = 512
"""A video of more sampled frames is encoded in pieces."""
PIECE_FRAMES = 64
"""About so many frames are in a piece: the next multiple of the frames that the encoder runs at once."""
PICTURES = 96
"""So many frames of a long video are kept, to be shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LongVideo:
    """What is known of a video that was encoded in pieces, beside its tokens."""

    times_s: np.ndarray
    """float64, T. When each frame is shown, in seconds."""
    pictured: np.ndarray
    """int64, K. Which of the T frames were kept to be shown."""
    feed: Feed
    """Reads the video again, for an encoder or a reducer that needs its frames."""
    encoder_count: int
    """How many tokens the encoder gave."""
    reduced: VisualTokens | None = None
    """The tokens after all reducers, if they were reduced piece by piece; the encoder's tokens are then gone."""
    ranking: tuple[str, np.ndarray] | None = None
    """What those reducers ranked patches by; as in `EncodedVideo`."""

    def run(self, frames: slice, times_s: np.ndarray) -> tuple[np.ndarray, LongVideo]:
        """Which of the pictures show a run of frames, and the same of this run, shown at `times_s`."""
        pictures = np.flatnonzero((self.pictured >= frames.start) & (self.pictured < frames.stop))
        part = LongVideo(
            times_s=times_s,
            pictured=self.pictured[pictures] - frames.start,
            feed=self.feed,
            encoder_count=self.encoder_count * len(times_s) // len(self.times_s),
            reduced=None if self.reduced is None else piece_of(self.reduced, frames),
            ranking=None if self.ranking is None else (self.ranking[0], self.ranking[1][frames]),
        )
        return pictures, part


class PiecewiseEncoding:
    """A `FrameSink` that encodes the frames which it gets. Used in a `with` statement, which ends the progress bar.

    Args:
        model: the model.
        processor: its processor; the frames that come are prepared for the encoder but not normalised.
        question: int64, 1 Q, ids of the question, for an encoder that reads it. Without, such an encoder does not run.
        whole: videos of at most so many frames are not taken.
        progress: whether progress is shown.
    """

    def __init__(
        self,
        model: MmllmForConditionalGeneration,
        processor: MediaReading,
        question: Tensor | None = None,
        *,
        whole: int = WHOLE_FRAMES,
        progress: bool = False,
    ) -> None:
        self.model, self.processor, self.whole, self.progress = model, processor, whole, progress
        self.question = None if question is None else question.to(model.input_device)
        self.encodes = question is not None or not model.encoder_reads_question
        self.reach = model.encoder.reach
        chunk = model.encoder.chunk
        self.piece = -(-max(PIECE_FRAMES, self.reach) // chunk) * chunk
        self.taken = 0
        """T of the video that is being encoded; 0 if none was taken."""
        self.seconds = 0.0
        """Wall time of encoding so far."""
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, None, None)

    def takes(self, count: int) -> bool:
        """Takes videos of more than `whole` frames, and starts anew with each."""
        self.__exit__(None, None, None)
        self.taken = count if count > self.whole else 0
        if not self.taken:
            return False
        self._bar = Progress("watch the video", count, "frames", shown=self.progress)
        self._store, self._rankings = TokenStore(count), list[np.ndarray]()
        self._ranked_by, self._encoder_count, self.seconds = "", 0, 0.0
        self._pictured = np.unique(np.linspace(0, count - 1, PICTURES).round().astype(np.int64))
        side = self.processor.frame_transform.size
        self._pictures = np.empty((len(self._pictured), side, side, 3), dtype=np.uint8)
        self._read = self._frames_read(count)
        self._received = self._encoded = 0  # frames so far; those of `_rows` that have tokens
        self._rows = np.flatnonzero(self._read) if self.reach == 0 else np.arange(count)
        self._waiting: deque[np.ndarray] = deque()  # frames of `_rows` without tokens, and up to `reach` before them
        return True

    def put(self, frame: np.ndarray) -> bool:
        """Takes the next frame (uint8 S S 3); True if a piece was encoded."""
        number, self._received = self._received, self._received + 1
        picture = int(np.searchsorted(self._pictured, number))
        if picture < len(self._pictured) and self._pictured[picture] == number:
            self._pictures[picture] = frame
        assert self._bar is not None
        self._bar.advance()
        if not self.encodes or not (self.reach or self._read[number]):
            return False
        self._waiting.append(frame)
        if len(self._waiting) < min(self.reach, self._encoded) + self.piece + self.reach:
            return False
        self._encode_piece()
        return True

    def finish(self, clip: VideoClip, feed: Feed) -> tuple[VideoClip, VisualTokens | None, LongVideo]:
        """Encodes the remaining frames.

        Args:
            clip: what `feed` has returned.
            feed: where the frames came from.

        Returns:
            The clip with the frames to be shown; the encoder's tokens, or None if they are reduced already or depend on
            a question that was not given; and the rest.
        """
        while self.encodes and self._encoded < len(self._rows):
            self._encode_piece()
        tokens = self._beside(self._store.tokens, clip) if self.encodes else None
        reduced = tokens if self._reduces else None
        shown = dataclasses.replace(
            clip,
            frames=self._pictures,
            times_s=clip.times_s[self._pictured],
            valid=clip.valid[self._pictured],
            waveform=None,  # it was heard, and takes 230 MB an hour
        )
        ranking = (self._ranked_by, np.concatenate(self._rankings)) if self._rankings else None
        long = LongVideo(
            times_s=clip.times_s,
            pictured=self._pictured,
            feed=feed,
            encoder_count=self._encoder_count,
            reduced=reduced,
            ranking=ranking,
        )
        return shown, None if reduced is not None else tokens, long

    def _beside(self, tokens: VisualTokens, clip: VideoClip) -> VisualTokens:
        """The tokens with what `mmllm.modalities.video` gives beside those of a whole clip."""
        device = self.model.input_device
        if clip.waveform is not None:
            sound, times_s = torch.from_numpy(clip.waveform), torch.from_numpy(clip.times_s).float()
            read = torch.from_numpy(self._read).unsqueeze(0).to(device)
            start_s = torch.tensor([clip.waveform_start_s])
            heard = self.model.hear(sound[None].to(device), times_s[None].to(device), read, start_s=start_s)
            tokens = tokens.replace(audio=heard[0], audio_mask=heard[1])
        return tokens.replace(
            times_s=torch.from_numpy(clip.times_s).float().unsqueeze(0).to(device),
            frame_size=torch.tensor([clip.original_size], device=device) if self.processor.frame_sizes else None,
        )

    def _frames_read(self, count: int) -> np.ndarray:
        """bool, T. The frames that the path reads."""
        every = torch.ones(1, count, dtype=torch.bool)
        return self.model.path.frames_read(every, None)[0].numpy()

    @property
    def _reduces(self) -> bool:
        """Whether pieces are reduced at once: no reducer, and no choice before them, needs the whole video."""
        reducers, path = self.model.reducers, self.model.path
        alone = all(reducer.by_frame and not reducer.reads_question for reducer in reducers)
        return len(reducers) > 0 and alone and not path.needs_similarity and bool(self._read.all()) and self.encodes

    @torch.no_grad()
    def _encode_piece(self) -> None:
        """Encodes and reduces the next piece, and forgets its pixels."""
        started = time.perf_counter()
        before = min(self.reach, self._encoded)
        rows = self._rows[self._encoded : self._encoded + self.piece]
        after = min(self.reach, len(self._waiting) - before - len(rows))
        numbers = self._rows[self._encoded - before : self._encoded + len(rows) + after]
        frames = np.stack([self._waiting[i] for i in range(len(numbers))])
        device = self.model.input_device
        pixels = torch.from_numpy(self.processor.frame_transform.video(frames)).unsqueeze(0).to(device)
        mask = torch.from_numpy(self._read[numbers]).unsqueeze(0).to(device)
        tokens = self.model.encode(pixels, mask, question=self.question, margins=(before, after))
        self._encoder_count += int(tokens.mask.sum())
        if self._reduces:
            if (ranking := ranking_map(self.model.reducers, tokens)) is not None:
                self._ranked_by = ranking[0]
                self._rankings.append(ranking[1])
            tokens = self.model.reduce(tokens)
        self._store.add(tokens, rows)
        self._encoded += len(rows)
        for _ in range(before + len(rows) - min(self.reach, self._encoded)):
            self._waiting.popleft()
        self.seconds += time.perf_counter() - started
