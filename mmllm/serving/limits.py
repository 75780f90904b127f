"""Limits of the server: for one question, and for all of them together."""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.app.limits import VisitorLimits


@dataclass(frozen=True, kw_only=True)
class ServeLimits(VisitorLimits):
    """Upper bounds of the server; those of `VisitorLimits` with room for programs."""

    question_characters: int = 100_000
    """Characters of all texts of a conversation."""
    new_tokens: int = 1024
    """Tokens of an answer."""
    answer_s: float = 120.0
    """Seconds of generation for one answer."""
    waiting: int = 256
    """Questions that are under way; more are refused."""
    inline_mb: int = 32
    """Megabytes of a request with its videos and images inside."""
    media: int = 64
    """Videos and images of a conversation."""
    parts: int = 256
    """Parts of all messages."""
    model_gb: float = 32.0
    """Gigabytes of loaded models; those that were used least recently are dropped."""

    @property
    def body_bytes(self) -> int:
        """Bytes of a request that is no upload; base64 writes three bytes as four."""
        return self.inline_mb * 1_000_000 * 4 // 3 + (1 << 20)
