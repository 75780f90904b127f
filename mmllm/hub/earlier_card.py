"""What an earlier card of a model says that its folder does not: licence, data sets, scores and its name on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.hub.model_card import FILE, MARK, METRICS, Scores

_CELLS = 3 + len(METRICS)
"""Cells of a row of scores behind the data's name."""


@dataclass(frozen=True, kw_only=True)
class EarlierCard:
    """What is kept of a card."""

    name: str | None = None
    """`owner/name` on the hub; None for a name of a folder."""
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    licence: str | None = None
    scores: Sequence[Scores] = ()

    def with_scores(self, given: Sequence[Scores]) -> list[Scores]:
        """The scores of the card, with those that are given in place of earlier ones on the same data."""
        return list({scores.data: scores for scores in (*self.scores, *given)}.values())


def earlier_card(folder: Path) -> EarlierCard:
    """What the card in a model's folder says; nothing without one that mmllm wrote.

    Raises:
        InputError: if its metadata or its table of scores cannot be read.
    """
    import yaml
    from huggingface_hub import metadata_load

    file = folder / FILE
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if MARK not in text:
        return EarlierCard()
    lines = text.partition(MARK)[2].splitlines()
    try:
        head = metadata_load(file) or {}
        scores = [_scores(line) for line in lines[_table_of_scores(lines) :] if line.startswith("|")]
    except (ValueError, TypeError, yaml.YAMLError, InputError) as problem:
        reason = " ".join(str(problem).split())
        raise InputError(f"{file}: cannot be read as mmllm wrote it: {reason:.200}: mend it or move it away") from None
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "")
    return EarlierCard(
        name=title if "/" in title else None,
        base_models=_listed(head.get("base_model")),
        datasets=_listed(head.get("datasets")),
        licence=head.get("license"),
        scores=scores,
    )


def _table_of_scores(lines: Sequence[str]) -> int:
    """The number of the line below the head of the table of scores; that behind the last line if there is none."""
    heads = [number for number, line in enumerate(lines) if line.startswith("| data |")]
    return heads[0] + 2 if heads else len(lines)


def _scores(row: str) -> Scores:
    """The scores of a row of the table, to the digits that it has.

    Raises:
        ValueError: if it is no such row.
    """
    data, *cells = (cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").rsplit("|", _CELLS))
    if len(cells) != _CELLS:
        raise ValueError(f"the row {row!r} has not {_CELLS + 1} cells")
    questions, *values, between, constant = cells
    metrics: dict[str, Any] = {"questions": float(questions)}
    metrics |= {name: float(value) / 100 for name, value in zip(METRICS, values, strict=True) if value != "-"}
    if between != "-":
        metrics["miou_interval"] = [float(end) / 100 for end in between.split(" to ")]
    if constant != "-":
        metrics["best_constant_miou"] = float(constant) / 100
    return Scores(data=data, metrics=metrics)


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()
