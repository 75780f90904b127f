"""What a decoding method did: passes, positions and tokens, beside the ids that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DecodingCounts:
    """The counters of one answer, or of several added up."""

    new_tokens: int
    """Tokens written: `first_tokens`, and the sum of `emitted_per_round`."""
    rounds: int
    """Verifications after the pass over the prompt."""
    target_passes: int
    """Passes of the target: those of the rounds, and of each answer's prompt."""
    target_positions: int
    """Positions that the target computed after the prompt."""
    draft_passes: int = 0
    """Passes of a draft model; 0 without one."""
    draft_positions: int = 0
    """Positions that it computed after its prompt."""
    drafted: int = 0
    """Tokens that were drafted, in all branches."""
    matched: int = 0
    """Drafted tokens that went into the text."""
    emitted_per_round: tuple[int, ...] = ()
    """Tokens that each round added to the text."""
    first_tokens: int = 1
    """Tokens that the pass over the prompt gave."""
    seconds_draft: float = 0.0
    seconds_verify: float = 0.0
    seconds_total: float = 0.0
    peak_kv_positions: int = 0
    """The most positions that the target's cache held."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only one method counts."""

    @classmethod
    def of(cls, text: Any, target: Any, emitted: Sequence[int], **others: Any) -> DecodingCounts:
        """The counters of one answer.

        Args:
            text: what was written, a `Written`.
            target: what read it, a `CachedReader`.
            emitted: tokens that each round added to the text.
            others: further counters.
        """
        return cls(
            new_tokens=text.count,
            rounds=len(emitted),
            target_passes=1 + target.passes,
            target_positions=target.positions,
            emitted_per_round=tuple(emitted),
            first_tokens=text.count - sum(emitted),
            peak_kv_positions=target.peak,
            **others,
        )

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass after the prompt added, on average; 0 if there was none."""
        return sum(self.emitted_per_round) / self.rounds if self.rounds else 0.0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that went into the text; 0 if none was drafted."""
        return self.matched / self.drafted if self.drafted else 0.0

    def to_json(self) -> dict[str, Any]:
        """The counters as plain JSON values, with the two ratios."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        ratios = {"tokens_per_pass": round(self.tokens_per_pass, 3), "acceptance": round(self.acceptance, 3)}
        return {**own, "emitted_per_round": list(self.emitted_per_round), **ratios}


def added(all_counts: Sequence[DecodingCounts]) -> DecodingCounts:
    """The counters of several answers together: sums, and the largest `peak_kv_positions`. Numbers of `extra` add up.

    Args:
        all_counts: at least one.
    """
    names = [entry.name for entry in fields(DecodingCounts) if entry.name not in ("peak_kv_positions", "extra")]
    sums = {
        name: sum((getattr(counts, name) for counts in all_counts[1:]), getattr(all_counts[0], name)) for name in names
    }
    extra: dict[str, Any] = {}
    for counts in all_counts:
        for name, value in counts.extra.items():
            extra[name] = extra[name] + value if name in extra else value
    peak = max(counts.peak_kv_positions for counts in all_counts)
    return DecodingCounts(**sums, peak_kv_positions=peak, extra=extra)
