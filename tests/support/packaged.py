"""What every model that comes with the package must do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open


def assert_finite(file: Path) -> None:
    """All weights of a file are finite."""
    with safe_open(file, "pt") as stored:
        assert all(stored.get_tensor(name).isfinite().all() for name in stored.keys())  # noqa: SIM118


def assert_better_than_a_guess(qa: Any, benchmark: Any, folder: Path, group: str = "") -> None:
    """Asked when things are visible, it overlaps by a tenth more than the best constant and than about wrong clips.

    Args:
        qa: the model.
        benchmark: fresh clips.
        folder: keeps the answers.
        group: only questions of this group are asked.
    """
    from mmllm.evaluation.run import answer_all, scores_of

    asked = [question for question in benchmark.questions if question.family == "visible"]
    asked = [question for question in asked if not group or question.group == group]
    samples, shuffled = answer_all(qa, asked, folder, progress=False)
    scores = scores_of(samples, shuffled, benchmark.fit)
    assert scores["miou"] > scores["best_constant_miou"] + 0.1
    assert scores["miou"] > scores["shuffled_miou"] + 0.1
