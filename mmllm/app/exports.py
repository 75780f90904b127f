"""Answers to take away: JSON, WebVTT subtitles, and the plot as PNG."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmllm.app.markup import readable
from mmllm.app.session import Visit
from mmllm.inference.plotting import plot_answer
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
    """WebVTT with a cue for each answered span, in order of time."""
    cues = sorted(
        (span.start_s, span.end_s, turn.answer.text or turn.question) for turn in visit.turns for span in turn.spans
    )
    blocks = [f"{_clock(start)} --> {_clock(max(end, start + 0.001))}\n{_cue(text)}" for start, end, text in cues]
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def export(visit: Visit, clip: VideoClip | None, folder: Path, model: str, note: str | None) -> list[Path]:
    """Writes the files that can be made of a visit, and returns their paths: JSON, WebVTT and, with frames, PNG.

    Args:
        visit: at least one turn.
        clip: frames for the plot of the last answer.
        folder: an empty folder.
        model: what answered.
        note: what should be known of it.
    """
    stem = re.sub(r"[^\w-]+", "-", Path(visit.name).stem).strip("-")[:60] or "video"
    told = json.dumps(answers(visit, model, note), indent=2, ensure_ascii=False) + "\n"
    written = [folder / f"{stem}.json", folder / f"{stem}.vtt"]
    written[0].write_text(told, encoding="utf-8")
    written[1].write_text(subtitles(visit), encoding="utf-8")
    if clip is not None:
        last = visit.turns[-1]
        truth = () if last.truth is None else (last.truth,)
        written.append(plot_answer(clip, last.question, last.spans, folder / f"{stem}.png", truth))
    return written


def _clock(time_s: float) -> str:
    """`hh:mm:ss.mmm`."""
    milliseconds = round(time_s * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _cue(text: str) -> str:
    """Text of a cue: one line, with what WebVTT would take for markup or for the next cue escaped."""
    text = " ".join(readable(text).split()) or "-"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
