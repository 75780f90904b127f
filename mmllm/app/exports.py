"""Files with answers: JSON, WebVTT subtitles, and a plot as PNG."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmllm.app.markup import readable
from mmllm.app.session import Visit
from mmllm.inference.plotting import plot_answer
from mmllm.runtime.files import write_text
from mmllm.tokens import VideoClip


def answers(visit: Visit, model: str, note: str | None) -> dict[str, Any]:
    """All turns about a video as plain JSON values."""
    return {
        "video": visit.name,
        "duration_s": visit.duration_s,
        "model": model,
        "note": note,
        "answers": [turn.to_json() for turn in visit.turns],
    }


def subtitles(visit: Visit) -> str:
    """WebVTT with one cue for each answered span, in order of time."""
    cues = sorted(
        (span.start_s, span.end_s, turn.answer.text or turn.question) for turn in visit.turns for span in turn.spans
    )
    blocks = [f"{_clock(start)} --> {_clock(max(end, start + 0.001))}\n{_cue(text)}" for start, end, text in cues]
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def export(visit: Visit, clip: VideoClip | None, folder: Path, model: str, note: str | None) -> list[Path]:
    """Writes JSON, WebVTT and, if there is a clip, PNG, and returns the paths.

    Args:
        visit: the video and its turns; at least one turn.
        clip: frames for the plot of the last answer; None for no plot.
        folder: an empty folder.
        model: name of the model.
        note: what users should know about the model.
    """
    stem = re.sub(r"[^\w-]+", "-", Path(visit.name).stem).strip("-")[:60] or "video"
    text = json.dumps(answers(visit, model, note), indent=2, ensure_ascii=False) + "\n"
    paths = [folder / f"{stem}.json", folder / f"{stem}.vtt"]
    write_text(paths[0], text)
    write_text(paths[1], subtitles(visit))
    if clip is not None:
        last = visit.turns[-1]
        truth = () if last.truth is None else (last.truth,)
        paths.append(plot_answer(clip, last.question, last.spans, folder / f"{stem}.png", truth))
    return paths


def _clock(time_s: float) -> str:
    """A time in seconds as `hh:mm:ss.mmm`."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue(text: str) -> str:
    """The text of a cue on one line; `&`, `<` and `>` are escaped, or WebVTT would read markup or a new cue."""
    text = " ".join(readable(text).split()) or "-"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
