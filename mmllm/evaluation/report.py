"""Scores as people read them: a table, and sentences below it."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "mIoU": "miou",
    "P@0.3": "p_at_0.3",
    "P@0.5": "p_at_0.5",
    "P@0.7": "p_at_0.7",
    "fallback": "fallback_rate",
    "missed": "miss_rate",
    "false alarm": "false_alarm_rate",
    "const": "best_constant_miou",
    "whole": "whole_video_miou",
    "text": "text_accuracy",
    "usual": "most_frequent_text_accuracy",
}
RANKED = {
    "mAP": "map",
    "mAP@0.5": "map_at_0.5",
    "mAP@0.75": "map_at_0.75",
    "R1@0.3": "r1_at_0.3",
    "R1@0.5": "r1_at_0.5",
    "R1@0.7": "r1_at_0.7",
}
"""What is said of questions with several true spans."""
MOST_LISTED = 10
"""At most so many rows that cannot be scored are printed."""
CAPTION = (
    "fallback: answers without two times. Without looking at the video: mIoU of the best constant interval of each "
    "family (const) and of the whole video (whole), accuracy of each family's most frequent text (usual)."
)
ABSENCE = (
    " missed: answers that an event does not happen, although it does; false alarm: times of one that does not happen."
)


def score_table(scores: dict[str, Any]) -> Any:
    """A table of rich, in per cent, with a row for each family, each part of the data and all.

    Columns without a value are omitted.
    """
    from rich import box
    from rich.table import Table

    columns = {title: key for title, key in COLUMNS.items() if scores.get(key) is not None}
    if not scores.get("miss_rate"):
        columns.pop("missed", None)
    table = Table(title="Scores in %", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    about_absence = {"missed", "false alarm"} & set(columns)
    table.caption, table.caption_justify = CAPTION + (ABSENCE if about_absence else ""), "left"
    table.add_column("family", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    parts = {f"of {part}": row for part, row in scores.get("groups", {}).items()}
    for name, row in [*scores["families"].items(), *parts.items(), ("all", scores)]:
        cells = ("-" if row[key] is None else f"{100 * row[key]:.1f}" for key in columns.values())
        table.add_row(name, str(row["questions"]), *cells, style="bold" if row is scores else None)
    return table


def score_summary(scores: dict[str, Any]) -> str:
    """Text below the table: interval, spread of trials, explanations, number of answers, bad rows, videos."""
    parts = []
    if scores["miou_interval"] is not None:
        low, high = (100 * end for end in scores["miou_interval"])
        interval = f"mIoU {100 * scores['miou']:.1f}: {low:.1f} to {high:.1f} in 95 % of resampled videos"
        ceiling = scores.get("ceiling_miou")
        limit = "" if ceiling is None else f"; at most {100 * ceiling:.1f} as this model writes times"
        parts.append(f"{interval}{limit}.")
    if trials := scores.get("trials"):
        spread = {title: 100 * trials["spread"][key] for title, key in COLUMNS.items() if key in trials["spread"]}
        listed = ", ".join(f"{title} {spread[title]:.1f}" for title in ("mIoU", "P@0.5", "text") if title in spread)
        parts.append(f"Mean of {trials['count']} trials at temperature {trials['temperature']}; spread: {listed}.")
    if scores.get("set_questions"):
        ranked = ", ".join(f"{title} {100 * scores[key]:.1f}" for title, key in RANKED.items())
        parts.append(f"Ranked spans of {scores['temporal_questions']:g} questions: {ranked}.")
    if "hit1_very_good" in scores:
        hits, precision = (100 * scores[key] for key in ("hit1_very_good", "highlight_map_very_good"))
        parts.append(f"Highlights (very good): HIT@1 {hits:.1f}, mAP {precision:.1f}.")
    if scores.get("absent_questions"):
        parts.append(
            f"False alarms: {_percent(scores['false_alarm_rate'])} in {scores['absent_questions']:g} questions about "
            f"what does not happen; missed: {_percent(scores['miss_rate'])} of what does. mIoU of sets, both kinds "
            f"together: {100 * scores['set_miou']:.1f}."
        )
    if scores["explanation_questions"]:
        parts.append(
            f"Explanations: word F1 {100 * scores['explanation_f1']:.1f}, "
            f"ROUGE-L {100 * scores['explanation_rouge_l']:.1f}, {_judged(scores.get('judge'))}."
        )
    parts.append(f"{scores['scored']:g} of {scores['questions']} questions were answered")
    summary = " ".join(parts) + ("; the others count as 0." if scores["failed"] else ".")
    if decoding := scores.get("decoding"):
        summary += f" Decoding {decoding['name']}: {decoding['other_law'] or 'exact, the same answers'}."
    if context := scores.get("context"):
        held, dense = context["bytes_held"] / 1024, context["bytes_dense"] / 1024
        summary += (
            f" Context {' '.join(context['policies'])}: {held:,.0f} KiB of the cache held of {dense:,.0f}, at most "
            f"{context['bytes_peak'] / 1024:,.0f}; {context['attended_mean']:,.1f} keys attended at the last step."
        )
    if missing := scores.get("missing"):
        difference = f"{missing} of the {scores['expected']} questions that were asked are not in the file"
        more = f"The file has {-missing} questions more than the {scores['expected']} that were expected"
        summary += f"\n{difference if missing > 0 else more}; the scores are those of the questions in it."
    if scores.get("bad_rows"):
        summary += f" {scores['bad_rows']} rows of the annotations cannot be scored."
        summary += "".join(f"\nLeft out: {reason}" for reason in scores.get("left_out", [])[:MOST_LISTED])
        more_rows = scores["bad_rows"] - MOST_LISTED
        summary += f"\nand {more_rows} more, in metrics.json" if more_rows > 0 else ""
    for vid, reason in (scores.get("set_aside") or {}).items():
        summary += f"\nSet aside: {vid}: {reason}"
    return summary


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f} %"


def _judged(judge: dict[str, Any] | None) -> str:
    if judge is None:
        return "not judged (--judge-url and --judge-model)"
    if judge["score"] is None:
        return f"no rating by {judge['model']} in {judge['unparseable']} replies"
    return (
        f"judged by {judge['model']} {100 * judge['score']:.1f} "
        f"({judge['rated']:g} rated, {judge['unparseable']:g} unparseable)"
    )
