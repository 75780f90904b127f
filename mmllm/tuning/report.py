"""What a search has found: as JSON, as a table, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.inference.plotting import ANSWER, saved
from mmllm.tuning.answers import UNREDUCED
from mmllm.tuning.search import Outcome, ReducerSearch

MODEL = "#1f5fa8"
_SHORT = {"measured": "", "under the target": "under", "set aside": "aside"}
"""What the table says of a setting that was not measured on all clips."""
MOST_LISTED = 12
"""At most so many settings are printed; `results.json` has all."""


def results_of(
    search: ReducerSearch, outcomes: list[Outcome], refused: dict[str, str], left_out: list[str]
) -> dict[str, Any]:
    """What `results.json` holds.

    | key | meaning |
    |---|---|
    | `target_miou`, `cost` | as they were given |
    | `unreduced` | `clips`, `miou`, and `operations` and `tokens` of a question, of the model with every token |
    | `cheapest` | the row of `settings` to use; null if none is within the target |
    | `nearest` | if so, the row that comes nearest to the target |
    | `settings` | a row for each: `flag`, `reducer`, `budget`, `end`, and after its last rung `clips`, `miou`, \
      `share` of the unreduced mIoU, its interval `low` and `high`, and `cost` as a share of the unreduced cost |
    | `refused` | reducer and budget, or flag -> why it does not work |
    | `left_out`, `unreadable` | rows and clips that nobody was asked about, with the reason |
    """
    answers, clips = search.answers, list(search.clips)
    whole = answers.of(UNREDUCED, [vid for vid in clips if (UNREDUCED, vid) in answers.results])
    operations = [result.operations for result in whole if result.operations is not None]
    rows = {outcome.setting.flag: _row(outcome) for outcome in outcomes if outcome.standing is not None}
    cheapest = search.cheapest()
    # a setting that was measured on few clips may look nearer than it is
    near = [row for row in rows.values() if row["end"] == "measured"] or list(rows.values())
    return {
        "target_miou": search.config.target_miou,
        "cost": search.config.cost,
        "unreduced": {
            "clips": len(whole),
            "miou": sum(result.miou for result in whole) / len(whole),
            "operations": sum(operations) / len(operations) if operations else None,
            "tokens": sum(result.tokens for result in whole) / len(whole),
        },
        "cheapest": None if cheapest is None else rows[cheapest.setting.flag],
        "nearest": max(near, key=lambda row: row["share"], default=None) if cheapest is None else None,
        "settings": sorted(rows.values(), key=lambda row: (-row["clips"], row["cost"])),
        "refused": refused | {each.setting.flag: each.reason for each in outcomes if each.end == "refused"},
        "left_out": left_out,
        "unreadable": dict(answers.unreadable),
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    assert outcome.standing is not None
    setting = outcome.setting
    named = {"flag": setting.flag, "reducer": setting.reducer, "budget": setting.share, "end": outcome.end}
    return named | outcome.standing.to_json()


def table_of(results: dict[str, Any]) -> Any:
    """A table of rich: the settings that were measured on most clips, the cheapest first."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 0, 0, 1))
    unreduced = results["unreduced"]
    table.title = f"mIoU with every token: {100 * unreduced['miou']:.1f} ({unreduced['clips']} clips)"
    for name in ("reducer", "kept", "clips", "mIoU", "of that", "95 %", results["cost"]):
        table.add_column(name, justify="left" if name == "reducer" else "right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.caption_justify = "left"
    table.caption = "under: surely under the target, aside: not among the best of a rung; neither saw all clips"
    best = results["cheapest"] or results["nearest"]
    rows = results["settings"][:MOST_LISTED]
    for row in rows if best is None or best in rows else [*rows[:-1], best]:
        table.add_row(
            row["reducer"],
            f"{100 * row['budget']:g} %",
            str(row["clips"]),
            f"{100 * row['miou']:.1f}",
            f"{100 * row['share']:.1f} %",
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
            f"{100 * row['cost']:.1f} %",
            _SHORT[row["end"]],
            style="bold" if row == best else None,
        )
    return table


def summary_of(results: dict[str, Any], folder: Path) -> str:
    """The result in a few lines, with the flag to use."""
    target, cheapest, nearest = 100 * results["target_miou"], results["cheapest"], results["nearest"]
    file = folder / "results.json"
    lines = []
    if cheapest is not None:
        lines.append(
            f"cheapest with at least {target:g} % of the unreduced mIoU: {100 * cheapest['share']:.1f} % of it "
            f"({100 * cheapest['low']:.1f} to {100 * cheapest['high']:.1f}) for {100 * cheapest['cost']:.1f} % of its "
            f"{results['cost']}"
        )
        lines.append(f"--reducer {cheapest['flag']}")
    else:
        lines.append(f"nothing within the target: no setting keeps {target:g} % of the unreduced mIoU")
        if nearest is not None:
            lines.append(f"the nearest keeps {100 * nearest['share']:.1f} %: --reducer {nearest['flag']}")
    if len(results["settings"]) > MOST_LISTED:
        lines.append(f"{len(results['settings']) - MOST_LISTED} more settings: {file}")
    if results["refused"]:
        lines.append(f"{len(results['refused'])} do not work with this model, and why: {file}")
    if results["left_out"] or results["unreadable"]:
        count = len(results["left_out"]) + len(results["unreadable"])
        lines.append(f"{count} rows or clips were left out, and why: {file}")
    return "\n".join(lines)


def plot_of(results: dict[str, Any], picture: Path) -> Path:
    """Draws mIoU over cost, both as shares of the unreduced model's: bars are intervals, hollow points saw fewer clips.

    Raises:
        InputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    most = results["unreduced"]["clips"]
    best = results["cheapest"] or results["nearest"]
    for row in results["settings"]:
        x, y = 100 * row["cost"], 100 * row["share"]
        whole, color = row["clips"] == most, ANSWER if row == best else MODEL
        bars = [[max(0.0, y - 100 * row["low"])], [max(0.0, 100 * row["high"] - y)]]
        if whole:
            axes.errorbar([x], [y], yerr=bars, color=color, linewidth=0.8, capsize=2)
        axes.plot([x], [y], "o", color=color, markerfacecolor=color if whole else "white", markersize=5)
        if whole:
            name = f"{row['reducer']} {100 * row['budget']:g} %"
            axes.annotate(name, (x, y), xytext=(-4, 4), textcoords="offset points", fontsize=7, ha="right")
    axes.axhline(100 * results["target_miou"], color="#777777", linewidth=0.8, linestyle=":")
    axes.set(xlabel=f"{results['cost']} of the LLM's reading, % of all", ylabel="mIoU, % of the unreduced model's")
    axes.grid(alpha=0.3)
    return saved(figure, picture)
