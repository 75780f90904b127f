"""`mmllm check`: shows what an annotation file holds and lists its problems, before any training."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.commands.flags import given_file, require_rate
from mmllm.datasets.check import check_annotations
from mmllm.errors import PartialFailure


def check(
    annotations: Annotated[Path, tyro.conf.Positional],
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    strict: bool = False,
    probe: bool = True,
    fps: float | None = None,
    show: int = 10,
    json: bool = False,
) -> None:
    """Show what an annotation file holds and list its problems; exit code 3 if rows or videos cannot be used.

    Fine-tuning refuses a file for the same problems. Only the number of a row's tokens is not looked at, because it
    depends on the model.

    Args:
        annotations: ActivityNet-RTL, ActivityNet Captions or YouCook2, NExT-QA, Charades-STA, TimeIT, QVHighlights,
            TimeLens, VUE-TR, Ego4D NLQ, MomentSeeker, TACoS, LLaVA conversations, chat messages or plain questions;
            JSON, JSON lines, a table or text, possibly gzipped.
        videos: folder of its videos, files or folders of frames; for dialogues the folder that paths are relative to.
        format: rtl, captions, nextqa, charades, timeit, qvhighlights, timelens, vue-tr, ego4d-nlq, momentseeker,
            tacos, dialogues or shards; auto recognises it from the content.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.
        strict: count rows as bad whose times would otherwise be clipped to the video.
        probe: open every video and image.
        fps: images a second of folders of frames, for rows that have no `fps`; 5 if it is not given.
        show: how many problems to print.
        json: print everything as one JSON object.
    """
    require_rate(fps)
    annotations = given_file(annotations)
    summary = check_annotations(annotations, videos, format, durations, "skip" if strict else "repair", probe, fps)
    if json:
        print(json_text.dumps(summary, indent=2, ensure_ascii=False))
    else:
        _print(summary, show)
    if refused := len(summary["refused"]):
        raise PartialFailure(f"{annotations}: {refused} rows or videos cannot be used")


def _print(summary: dict[str, Any], show: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=summary["annotations"], title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    for key, value in summary.items():
        if key in ("annotations", "refused", "problems", "notes") or value is None:
            continue
        if key == "self_iou":
            scores = [f"{100 * score:.1f} % ({count})" for count, score in value.items() if score is not None]
            cell = ", ".join(scores) or "-"
        else:
            cell = f"{100 * value:.1f} %" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), cell)
    console.print(table)
    for problem in summary["problems"][:show]:
        console.print(problem, markup=False, highlight=False)
    if len(summary["problems"]) > show:
        console.print(f"... and {len(summary['problems']) - show} more")
    for note in summary["notes"][:show]:
        console.print(f"note: {note}", markup=False, highlight=False)
