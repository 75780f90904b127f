"""The last frames of a stream with their features, as a video of their own. Features of a frame are computed once.

T frames that are kept, S side of the encoder's input, N tokens of a frame, C width
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.modeling.token_store import TokenStore, piece_of
from mmllm.tokens import VideoClip, VisualTokens


class RecentFrames:
    """The last frames of a stream.

    An encoder that compares a frame with its neighbours looks at the newest ones again when their neighbours have come.

    Args:
        qa: the model.
        count: T, how many frames are kept.
        rate: frames a second.
    """

    def __init__(self, qa: VideoAnswering, count: int, rate: float) -> None:
        self.qa, self.rate = qa, rate
        self._pixels: deque[np.ndarray] = deque(maxlen=count)
        self._times_s: deque[float] = deque(maxlen=count)
        self._tokens: deque[VisualTokens] = deque(maxlen=count)
        self._size = (0, 0)
        self.encoded_frames = 0
        """How many times the encoder has looked at a frame."""

    def __len__(self) -> int:
        return len(self._times_s)

    @property
    def keeps_features(self) -> bool:
        """Whether features are kept; hosted models, and encoders that read the question, look at all frames again."""
        return isinstance(self.qa, VideoQA) and not self.qa.model.encoder_reads_question

    @property
    def start_s(self) -> float:
        """When the first of them is shown."""
        return self._times_s[0]

    def clear(self) -> None:
        """Forgets all frames, because those that come have no connection with them."""
        for kept in (self._pixels, self._times_s, self._tokens):
            kept.clear()

    @torch.no_grad()
    def add(self, pixels: np.ndarray, time_s: float) -> None:
        """Takes the next frame (uint8, H W 3); the oldest one goes if there are T."""
        self._size = pixels.shape[:2]
        if isinstance(self.qa, VideoQA):
            pixels = self.qa.processor.frame_transform.video_frame(pixels)
        self._pixels.append(pixels)
        self._times_s.append(time_s)
        if self.keeps_features:
            self._look()

    def video(self) -> EncodedVideo:
        """The frames as the model sees them: a video that begins at 0."""
        clip = VideoClip(
            frames=np.stack(self._pixels),
            times_s=np.array(self._times_s) - self.start_s,
            duration_s=self._times_s[-1] - self.start_s + 1 / self.rate,
            source="stream",
            original_size=self._size,
        )
        if not self.keeps_features:
            self.encoded_frames += len(self)
            return self.qa.encode_video(clip)
        return self.qa.encode_again(EncodedVideo(clip=clip, sequences={}, tokens=self._joined(clip)))

    def settled(self) -> EncodedVideo | None:
        """The newest frame that all its neighbours have come to, as a video of its own; None if there is none yet.

        Its time is that of the stream.
        """
        assert isinstance(self.qa, VideoQA)
        number = len(self) - 1 - self.qa.model.encoder.reach
        if number < 0:
            return None
        clip = VideoClip(
            frames=self._pixels[number][None],
            times_s=np.array([self._times_s[number]]),
            duration_s=self._times_s[-1] + 1 / self.rate,
            source="stream",
            original_size=self._size,
        )
        tokens = self._beside(self._tokens[number], clip)
        return self.qa.encode_again(EncodedVideo(clip=clip, sequences={}, tokens=tokens))

    def _look(self) -> None:
        """Encodes the newest frame, and those again that had no later neighbour so far."""
        assert isinstance(self.qa, VideoQA)
        model, reach = self.qa.model, self.qa.model.encoder.reach
        again = min(reach, len(self._tokens), len(self) - 1)
        before = min(reach, len(self) - 1 - again)
        frames = np.stack([self._pixels[number] for number in range(-1 - again - before, 0)])
        pixels = torch.from_numpy(self.qa.processor.frame_transform.video(frames)).unsqueeze(0).to(model.input_device)
        mask = torch.ones(1, len(frames), dtype=torch.bool, device=model.input_device)
        tokens = model.encode(pixels, mask, margins=(before, 0))
        for _ in range(again):
            self._tokens.pop()
        self._tokens.extend(piece_of(tokens, slice(number, number + 1)) for number in range(again + 1))
        self.encoded_frames += again + 1

    def _joined(self, clip: VideoClip) -> VisualTokens:
        """1 T N C: the tokens of all frames."""
        store = TokenStore(len(self))
        for number, tokens in enumerate(self._tokens):
            store.add(tokens, np.array([number]))
        return self._beside(store.tokens, clip)

    def _beside(self, tokens: VisualTokens, clip: VideoClip) -> VisualTokens:
        """The tokens of a clip, with what is known beside them."""
        assert isinstance(self.qa, VideoQA)
        device = self.qa.model.input_device
        size = torch.tensor([clip.original_size], device=device) if self.qa.processor.frame_sizes else None
        times_s = torch.from_numpy(clip.times_s).float().unsqueeze(0).to(device)
        return tokens.replace(times_s=times_s, frame_size=size)
