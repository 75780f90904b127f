"""An answer as a picture: a strip of frames over a time axis, with the spans marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmllm.errors import InputError
from mmllm.time_tokens import Span
from mmllm.tokens import VideoClip

ANSWER, TRUTH = "#e4572e", "#2e8b57"


def plot_answer(
    clip: VideoClip, question: str, spans: Sequence[Span], picture: Path, truth: Sequence[Span] = ()
) -> Path:
    """Draws frames of a clip over its time axis, the answered spans and, where it is known, the truth.

    Args:
        clip: frames, of which about a dozen are shown at the instants they stand for.
        question: written above.
        spans: what was answered.
        picture: the file to write; its suffix says the format (png, pdf, svg).
        truth: the annotated spans.

    Raises:
        InputError: if the format is not known or the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = [("answer", spans, ANSWER)] + ([("truth", truth, TRUTH)] if truth else [])
    duration_s = clip.duration_s
    shown = np.unique(np.linspace(0, len(clip) - 1, 12).round().astype(int))
    width = duration_s / len(shown)
    height, wide = clip.frames.shape[1:3]
    strip_in = 10.6 / len(shown) * height / wide * 1.15 + 0.25
    axis_in = 0.55 + 0.35 * len(rows)
    figure = Figure(figsize=(11, 0.35 + strip_in + axis_in), layout="constrained")
    strip, axis = figure.subplots(2, 1, height_ratios=[strip_in, axis_in], sharex=True)
    for slot, i in enumerate(shown):
        left = slot * width
        strip.imshow(clip.frames[i], extent=(left, left + width * 0.96, 0, 1), aspect="auto", interpolation="bilinear")
        inside = any(span.start_s <= clip.times_s[i] <= span.end_s for span in spans)
        edge = Rectangle((left, 0), width * 0.96, 1, fill=False, linewidth=3, edgecolor=ANSWER if inside else "none")
        strip.add_patch(edge)
        strip.text(left + width * 0.48, -0.04, f"{clip.times_s[i]:.1f}", ha="center", va="top", fontsize=7)
    strip.set_xlim(0, duration_s)
    strip.set_ylim(-0.15, 1)
    strip.set_aspect(0.96 * width * height / wide, anchor="S")
    strip.axis("off")
    strip.set_title(question, fontsize=12, loc="left")
    for row, (name, marked, color) in enumerate(rows):
        for span in marked:
            axis.barh(-row, max(span.length_s, duration_s * 0.004), left=span.start_s, height=0.7, color=color)
            label = f"{span.start_s:.1f} - {span.end_s:.1f} s"
            late = span.end_s > 0.8 * duration_s
            at = span.start_s - 0.005 * duration_s if late else span.end_s + 0.005 * duration_s
            axis.text(at, -row, label, va="center", ha="right" if late else "left", fontsize=8)
        axis.text(-0.006 * duration_s, -row, name, ha="right", va="center", fontsize=9, color=color)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_yticks([])
    axis.set_xlabel("seconds")
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
    try:
        figure.savefig(picture, dpi=130)
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot draw into {picture}: {problem}") from None
    return picture
