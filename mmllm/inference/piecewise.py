"""Encoding a long video while it is decoded: pixels are dropped after each piece, tokens are kept.

    frame, frame, ... -> a piece of frames -> encoder -> reducers that work frame by frame -> tokens of the whole video

T frames, S side of the encoder's input, H W patch grid
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch

from mmllm.inference.overlay import ranking_map
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.token_store import TokenStore
from mmllm.preprocessing.frames import FrameTransform
from mmllm.runtime.progress import Progress
from mmllm.tokens import VisualTokens

WHOLE_FRAMES = 512
"""A video of more sampled frames is encoded in pieces."""
PIECE_FRAMES = 64
"""About so many frames are in a piece: the next multiple of the frames that the encoder runs at once."""
PICTURES = 96
"""So many frames of a long video are kept, to be shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LongTokens:
    """What remains of a video that was encoded in pieces."""

    tokens: VisualTokens | None
    """The encoder's tokens; None if they were reduced piece by piece."""
    reduced: VisualTokens | None
    """The tokens after all reducers; None if a reducer needs the whole video."""
    encoder_count: int
    """How many tokens the encoder gave."""
    ranking: tuple[str, np.ndarray] | None
    """As in `EncodedVideo`, if the tokens were reduced piece by piece."""
    pictures: np.ndarray
    """uint8, K S S 3. Evenly spaced frames."""
    pictured: np.ndarray
    """int64, K. Their numbers among the T."""
    seconds: float
    """Seconds that the encoder took."""


class PiecewiseEncoding:
    """A `FrameSink` that encodes the frames which it gets. Used in a `with` statement, which ends the progress bar.

    Args:
        model: the model.
        transform: how its frames are prepared; the frames that come are of the encoder's size.
        whole: videos of at most so many frames are not taken.
        progress: whether progress is shown.
    """

    def __init__(
        self,
        model: MmllmForConditionalGeneration,
        transform: FrameTransform,
        *,
        whole: int = WHOLE_FRAMES,
        progress: bool = False,
    ) -> None:
        self.model, self.transform, self.whole, self.progress = model, transform, whole, progress
        chunk, self.reach = model.encoder.chunk, model.encoder.reach
        self.piece = -(-max(PIECE_FRAMES, self.reach) // chunk) * chunk
        self.by_frame = all(reducer.by_frame for reducer in model.reducers)
        self.taken = 0
        """T of the video that is being encoded; 0 if none was taken."""
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
        self._waiting: deque[np.ndarray] = deque()  # frames without tokens, and up to `reach` before them
        self._received = self._encoded = 0
        self._pictured = np.unique(np.linspace(0, count - 1, PICTURES).round().astype(np.int64))
        self._pictures = np.empty((len(self._pictured), *(self.transform.size,) * 2, 3), dtype=np.uint8)
        return True

    def put(self, frame: np.ndarray) -> bool:
        """Takes the next frame (uint8 S S 3); True if a piece was encoded."""
        row = int(np.searchsorted(self._pictured, self._received))
        if row < len(self._pictured) and self._pictured[row] == self._received:
            self._pictures[row] = frame
        self._waiting.append(frame)
        self._received += 1
        if self._received - self._encoded < self.piece + self.reach:
            return False
        self._encode_piece()
        return True

    def finish(self) -> LongTokens:
        """Encodes the remaining frames."""
        while self._encoded < self.taken:
            self._encode_piece()
        stored = self._store.tokens
        name = self._ranked_by
        return LongTokens(
            tokens=None if self._reduces else stored,
            reduced=stored if self.by_frame else None,
            encoder_count=self._encoder_count,
            ranking=(name, np.concatenate(self._rankings)) if self._rankings else None,
            pictures=self._pictures,
            pictured=self._pictured,
            seconds=self.seconds,
        )

    @property
    def _reduces(self) -> bool:
        return self.by_frame and len(self.model.reducers) > 0

    @torch.no_grad()
    def _encode_piece(self) -> None:
        """Encodes and reduces the next piece, and forgets its pixels."""
        started = time.perf_counter()
        count = min(self.piece, self.taken - self._encoded)
        before = min(self.reach, self._encoded)
        after = min(self.reach, self._received - self._encoded - count)
        frames = np.stack([self._waiting[i] for i in range(before + count + after)])
        device = self.model.input_device
        pixels = torch.from_numpy(self.transform.video(frames)).unsqueeze(0).to(device)
        mask = torch.ones(1, len(frames), dtype=torch.bool, device=device)
        tokens = self.model.encode(pixels, mask, margins=(before, after))
        self._encoder_count += int(tokens.mask.sum())
        if self._reduces:
            if (ranking := ranking_map(self.model.reducers, tokens)) is not None:
                self._ranked_by = ranking[0]
                self._rankings.append(ranking[1])
            tokens = self.model.reduce(tokens)
        self._store.add(tokens)
        self._encoded += count
        for _ in range(before + count - min(self.reach, self._encoded)):
            self._waiting.popleft()
        assert self._bar is not None
        self._bar.advance(count)
        self.seconds += time.perf_counter() - started
