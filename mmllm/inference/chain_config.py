"""Settings of asking in a chain: over how many parts of a video, and what each part is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require

REQUEST = (
    "Describe in detail what can be seen in this part of the video: who or what appears, what happens and in which "
    "order."
)
"""The request to each part. TDC's authors use one of their own that asks for the same."""
PUBLISHED_PARTS = ((900, 3), (600, 2))
"""Frames at one a second, and the parts from so many on, as TDC is evaluated on Video-MME; below, there is no chain."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """LVCoT of TDC (arXiv 2504.10443): the model looks at the parts of a video first, and reads what it said of them.

    In the paper each part answers the question. In the published code each is described, and the descriptions go into a
    block `<think>` before the question.
    """

    parts: int | Literal["auto"] = "auto"
    """M: equally many frames each; what does not fill them is left out. `auto` follows the length: 2 from 600 seconds
    on, 3 from 900 on."""
    steps: Literal["describe", "answer"] = "describe"
    """`describe`: as in the published code. `answer`: as in the paper, with the time of each part before its answer."""
    request: str = REQUEST
    """What each part is asked with `describe`."""
    max_new_tokens: int = 128
    """Most tokens said of each part."""
    read: Literal["question", "prompt"] = "question"
    """What visual parts that read questions get of the last pass: the bare question, or what was said of the parts
    before it as well."""

    def __post_init__(self) -> None:
        whole = isinstance(self.parts, int) and not isinstance(self.parts, bool)
        require(self.parts == "auto" or (whole and self.parts >= 1), self, "parts", "at least 1, or auto")
        require(self.steps in ("describe", "answer"), self, "steps", "describe or answer")
        require(bool(self.request.strip()), self, "request", "a text")
        require(self.max_new_tokens >= 1, self, "max_new_tokens", "at least 1 token")
        require(self.read in ("question", "prompt"), self, "read", "question or prompt")

    @classmethod
    def of(cls, chain: Any) -> ChainConfig | None:
        """The settings of a number of parts, of "auto", or as they are; None for None.

        Raises:
            InputError: if it is anything else.
        """
        if chain is None or isinstance(chain, cls):
            return chain
        try:
            return cls(parts=int(chain) if isinstance(chain, str) and chain.strip() != "auto" else chain)
        except (ValueError, ConfigError):
            raise InputError(f"chain must be a number of parts, 1 or more, or auto, not {chain!r:.40}") from None

    def parts_of(self, frames: int, duration_s: float) -> int:
        """M for a video of `frames` frames; 0 if it is asked without a chain.

        Raises:
            InputError: if there are more parts than frames.
        """
        if self.parts == "auto":
            each_second = math.ceil(round(duration_s, 9))
            parts = next((parts for least, parts in PUBLISHED_PARTS if each_second >= least), 0)
        else:
            parts = int(self.parts)
        if parts > frames:
            raise InputError(f"a chain of {parts} parts needs as many frames, and {frames} are sampled: sample more")
        return parts
