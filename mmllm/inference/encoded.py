"""A video as a model has seen it: decoded and encoded once, for any number of questions.

T frames, H W patch grid
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mmllm.errors import InputError
from mmllm.inference.kept_prefix import PrefixSlot
from mmllm.inference.piecewise import LongVideo
from mmllm.tokens import VideoClip, VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideo:
    """A decoded and encoded video. Further questions about it cost neither decoding nor encoding."""

    clip: VideoClip
    """The frames that the encoder was given; of a long video read in pieces only some, evenly spaced, to be shown."""
    sequences: dict[int, VisualSequence]
    """Placeholder id -> what the LLM reads."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage that was run: `decode`, `encode`, `reduce` (which includes the path)."""
    tokens: VisualTokens | None = None
    """The encoder's features. Other reducers and paths can start from them. None if they depend on a question."""
    kept: np.ndarray | None = None
    """bool, T H W. The patches that still have a token after the reducers. None if tokens belong to no patch."""
    ranking: tuple[str, np.ndarray] | None = None
    """What the reducers ranked patches by: a name, and float32 T H W. None if no reducer ranks."""
    token_counts: dict[str, int] = field(default_factory=dict)
    """Tokens after each stage: `encoder`, `reducers`, then each block of the path by name."""
    question: str | None = None
    """The question for which a model that reads questions has looked at the video. None for all other models; and for
    a video that was encoded without a question, which has only what does not depend on one."""
    long: LongVideo | None = None
    """What else is known of a long video, which was encoded in pieces."""
    prefix: PrefixSlot = field(default_factory=PrefixSlot)
    """The LLM's cache of the video, once a question has been asked: further questions start from it."""
    from_file: bool = False
    """Whether it comes from a file that holds this cache and nothing else: neither frames nor tokens."""

    @property
    def times_s(self) -> np.ndarray:
        """float64, T. When each frame is shown, in seconds."""
        return self.clip.times_s if self.long is None else self.long.times_s

    def of_pictures(self, values: np.ndarray) -> np.ndarray:
        """The rows of values (T ...) that belong to the clip's frames."""
        return values if self.long is None else values[self.long.pictured]

    def require_frames(self) -> None:
        """Refuses to look at a video again that has no frames.

        Raises:
            InputError: if it comes from a file of the LLM's cache.
        """
        if self.from_file:
            raise InputError(
                f"{self.clip.source}: of this video there is only the LLM's cache, without frames and visual tokens: "
                "give the video itself"
            )

    @property
    def read_tokens(self) -> int:
        """How many visual tokens the LLM reads: those of the path, not those of the stages before it."""
        return sum(count for name, count in self.token_counts.items() if name not in ("encoder", "reducers"))

    @property
    def duration_s(self) -> float:
        """Length of the whole video."""
        return self.clip.duration_s
