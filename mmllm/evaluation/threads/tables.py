"""Scores of the suites as people read them: depth down, length across, chance beside."""

from __future__ import annotations

import re
from typing import Any

_PLACE = re.compile(r"(?P<length>[0-9.]+) s, depth (?P<depth>[0-9.]+) %")


def depth_tables(scores: dict[str, Any], chance: float) -> list[Any]:
    """Titles and tables of rich, in per cent: mIoU of needles, and right answers of threads of one step.

    Args:
        scores: of `mmllm eval`, with the groups that the suite of clips gives its questions.
        chance: of a shape that is drawn without looking.
    """
    cells = {
        (float(place["length"]), float(place["depth"])): row
        for group, row in scores["groups"].items()
        if (place := _PLACE.fullmatch(group))
    }
    blind = scores["families"]["needle"]["best_constant_miou"]
    return [
        f"Needles: mIoU in % (best constant interval: {100 * blind:.1f})",
        _table(cells, "miou"),
        f"Threads of 1: right in % (chance: {100 * chance:.1f})",
        _table(cells, "text_accuracy"),
    ]


def _table(cells: dict[tuple[float, float], dict[str, Any]], key: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    lengths = sorted({length for length, _ in cells})
    table.add_column("depth", justify="right")
    for length in lengths:
        table.add_column(f"{length:g} s", justify="right")
    for depth in sorted({depth for _, depth in cells}):
        row = (cells[length, depth][key] for length in lengths)
        table.add_row(f"{depth:g} %", *("-" if value is None else f"{100 * value:.1f}" for value in row))
    return table


def text_table(scores: dict[str, Any]) -> Any:
    """A table of rich, in per cent, with a row for each kind of task."""
    from rich import box
    from rich.table import Table

    table = Table(title="Needle Threading, in %", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for title in ("task", "n", "score", "chance", "too long"):
        table.add_column(title, justify="left" if title == "task" else "right")
    for kind, row in [*scores["kinds"].items(), ("all", scores)]:
        percent = (f"{100 * row[key]:.1f}" for key in ("score", "chance"))
        table.add_row(kind, str(row["tasks"]), *percent, str(row["too_long"]))
    return table
