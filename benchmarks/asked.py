"""What one way of decoding gave, and its row beside greedy decoding."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.results import Results
from mmllm.decoding.counts import DecodingCounts
from mmllm.errors import MmllmError
from mmllm.evaluation.metrics import sample_iou
from mmllm.evaluation.samples import Sample
from mmllm.interfaces import Decoding

GREEDY = "one token a pass"


@dataclass
class Asked:
    """What one way of decoding gave."""

    answers: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    """Of questions about videos."""
    seconds: float = 0.0

    @property
    def miou(self) -> float:
        """Mean IoU in per cent, over questions with true spans."""
        ious = [sample_iou(sample) for sample in self.samples if sample.truth_spans]
        return 100 * sum(ious) / max(1, len(ious))


def add_row(results: Results, table: str, name: str, method: Decoding | None, result: Asked, greedy: Asked) -> None:
    """A row of a table.

    Raises:
        MmllmError: if an exact method has changed an answer.
    """
    counts: DecodingCounts | None = None if method is None else method.total
    same = sum(a == b for a, b in zip(result.answers, greedy.answers, strict=True))
    law = "exact" if method is None or not method.other_law else "another"
    if law == "exact" and same < len(greedy.answers):
        raise MmllmError(f"{name} is exact, and has changed {len(greedy.answers) - same} answers")
    numbers = {"same_percent": 100 * same / len(greedy.answers), "time_ratio": result.seconds / greedy.seconds}
    if result.samples:
        numbers["miou_percent"] = result.miou
    if counts is not None:
        numbers |= {
            "passes": counts.target_passes,
            "passes_ratio": counts.target_passes / counts.new_tokens,
            "tokens_per_pass": counts.tokens_per_pass,
            "acceptance_percent": 100 * counts.acceptance,
            "positions": counts.target_positions,
            "draft_passes": counts.draft_passes,
        }
    results.add(table, {"method": name, "law": law, "questions": str(len(greedy.answers))}, numbers)
