"""A video as a picture: strips of frames over a time axis, with the answered spans and what reducers kept.

T frames, Y X height and width in pixels, H W patch grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.inference.overlay import dimmed, heated
from mmllm.runtime.files import replacing
from mmllm.times.answers import Span
from mmllm.tokens import VideoClip

ANSWER, TRUTH, HELD = "#e4572e", "#2e8b57", "#4c78a8"
_BARS_IN = 0.9
"""Height of the row of bars in inches."""
_MOST_FRAMES = 12


def plot_answer(
    clip: VideoClip,
    title: str,
    spans: Sequence[Span],
    picture: Path,
    truth: Sequence[Span] = (),
    *,
    kept: np.ndarray | None = None,
    ranking: tuple[str, np.ndarray] | None = None,
    pictured: np.ndarray | None = None,
    held: tuple[np.ndarray, Sequence[float]] | None = None,
) -> Path:
    """Draws frames of a clip over its time axis, the answered spans and, if given, the true ones.

    Args:
        clip: the video's frames. About a dozen are drawn.
        title: text above the picture, such as the question.
        spans: the answered spans. Empty if nothing was asked.
        picture: the file to write; its suffix is the format (png, pdf, svg).
        truth: the annotated spans.
        kept: bool, T H W. Adds a strip in which patches without a token are dark.
        ranking: name and float T H W. Adds a strip with what patches were ranked by, as a heat map.
        pictured: int64. Which of the T frames the clip has, if it is that of a long video; None if it has all.
        held: seconds of each frame, and how many of its tokens the LLM's cache still holds. Adds a row of bars.

    Raises:
        InputError: if matplotlib cannot write that format, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = np.unique(np.linspace(0, len(clip) - 1, _MOST_FRAMES).round().astype(int))
    clip = replace(clip, frames=clip.frames[drawn], times_s=clip.times_s[drawn], valid=clip.valid[drawn])
    drawn_rows = drawn if pictured is None else pictured[drawn]
    strips = {"": clip.frames}
    if kept is not None:
        strips[f"kept: {int(kept.sum()):,} of {kept.size:,} patches"] = dimmed(clip.frames, kept[drawn_rows])
    if ranking is not None:
        strips[f"ranked by: {ranking[0]}"] = heated(clip.frames, ranking[1][drawn_rows])
    rows = [(name, row_spans, color) for name, row_spans, color in
            (("answer", spans, ANSWER), ("truth", truth, TRUTH)) if row_spans]  # fmt: skip
    frame_height, frame_width = clip.frames.shape[1:3]
    strip_in = 10.6 / len(clip) * frame_height / frame_width * 1.15 + 0.25
    axis_in = 0.55 + 0.35 * len(rows)
    heights = [strip_in] * len(strips) + ([_BARS_IN] if held else []) + [axis_in]
    figure = Figure(figsize=(11, 0.35 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    for axis, (name, frames) in zip(axes, strips.items(), strict=False):
        draw_frames(axis, clip, frames, np.arange(len(clip)), spans)
        axis.set_title(name or title, fontsize=9 if name else 12, loc="left")
    if held is not None:
        draw_held(axes[-2], *held, clip.duration_s)
    draw_spans(axes[-1], rows, clip.duration_s)
    return saved(figure, picture)


def saved(figure: Any, picture: Path) -> Path:
    """Writes a matplotlib figure and returns its file.

    Raises:
        InputError: if matplotlib cannot write that format, or the file cannot be written.
    """
    try:
        with replacing(picture) as partial:
            figure.savefig(partial, dpi=130)
    except ValueError as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"cannot write the picture {picture}: {problem}") from None
    return picture


def draw_frames(axis: Any, clip: VideoClip, frames: np.ndarray, drawn: np.ndarray, spans: Sequence[Span]) -> None:
    """Draws the frames (T Y X 3) with the indices `drawn` side by side. Frames inside a span get a border."""
    from matplotlib.patches import Rectangle

    width = clip.duration_s / len(drawn)
    frame_height, frame_width = frames.shape[1:3]
    for slot, i in enumerate(drawn):
        left = slot * width
        axis.imshow(frames[i], extent=(left, left + width * 0.96, 0, 1), aspect="auto", interpolation="bilinear")
        inside = any(span.start_s <= clip.times_s[i] <= span.end_s for span in spans)
        edge = Rectangle((left, 0), width * 0.96, 1, fill=False, linewidth=3, edgecolor=ANSWER if inside else "none")
        axis.add_patch(edge)
        axis.text(left + width * 0.48, -0.04, f"{clip.times_s[i]:.1f}", ha="center", va="top", fontsize=7)
    axis.set_xlim(0, clip.duration_s)
    axis.set_ylim(-0.15, 1)
    axis.set_aspect(0.96 * width * frame_height / frame_width, anchor="S")
    axis.axis("off")


def draw_held(axis: Any, times_s: np.ndarray, counts: Sequence[float], duration_s: float) -> None:
    """Draws a bar for each frame, as high as the number of its tokens that the LLM's cache still holds."""
    axis.bar(times_s, counts, width=0.8 * duration_s / max(len(counts), 1), color=HELD)
    axis.set_title(f"tokens of each frame that the LLM still holds: {sum(counts):,.1f}", fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    for side in ("right", "top"):
        axis.spines[side].set_visible(False)


def draw_spans(axis: Any, rows: Sequence[tuple[str, Sequence[Span], str]], duration_s: float) -> None:
    """Draws a bar for each span over an axis of seconds.

    Args:
        axis: of matplotlib.
        rows: one for each kind of spans: its name, spans and colour.
        duration_s: length of the video.
    """
    for row, (name, spans, color) in enumerate(rows):
        for span in spans:
            axis.barh(-row, max(span.length_s, duration_s * 0.004), left=span.start_s, height=0.7, color=color)
            label = f"{span.start_s:.1f} - {span.end_s:.1f} s"
            if span.length_s > 0.7 * duration_s:  # no room beside the bar
                middle = (span.start_s + span.end_s) / 2
                axis.text(middle, -row, label, va="center", ha="center", fontsize=8, color="white")
                continue
            late = span.end_s > 0.8 * duration_s  # the label goes to the left of the bar
            label_s = span.start_s - 0.005 * duration_s if late else span.end_s + 0.005 * duration_s
            axis.text(label_s, -row, label, va="center", ha="right" if late else "left", fontsize=8)
        axis.text(-0.006 * duration_s, -row, name, ha="right", va="center", fontsize=9, color=color)
    axis.set_xlim(0, duration_s)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_yticks([])
    axis.set_xlabel("seconds")
    for side in ("left", "right", "top"):
        axis.spines[side].set_visible(False)
