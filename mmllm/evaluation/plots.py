"""Pictures of the scores of answers: a histogram of IoU, and IoU against an event's length.

n answers about time, K bins
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.evaluation.baselines import WHOLE_VIDEO
from mmllm.evaluation.metrics import THRESHOLDS, bootstrap_interval, over_videos, sample_iou
from mmllm.evaluation.samples import Sample
from mmllm.inference.plotting import ANSWER, saved

MODEL, FALLBACK, BLIND = "#1f5fa8", "#b9c6d6", ANSWER
BINS = 20


def plot_iou_histogram(samples: Sequence[Sample], picture: Path) -> Path:
    """Draws a histogram of IoU. Answers without two times and failed questions have colours of their own.

    Raises:
        InputError: if no question is about time.
    """
    from matplotlib.figure import Figure

    timed = _timed(samples)
    scores = np.array([sample_iou(sample) for sample in timed])  # n
    groups = {
        "two times named": np.array([not (sample.fallback or sample.error) for sample in timed]),
        "no two times: the whole video": np.array([sample.fallback and not sample.error for sample in timed]),
        "not answered": np.array([bool(sample.error) for sample in timed]),
    }
    present = {name: members for name, members in groups.items() if members.any()}
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    colors = {"two times named": MODEL, "no two times: the whole video": FALLBACK, "not answered": "#d8d8d8"}
    axes.hist(
        [scores[members] for members in present.values()],
        bins=list(np.linspace(0, 1, BINS + 1)),
        stacked=True,
        color=[colors[name] for name in present],
        label=list(present),
        edgecolor="white",
        linewidth=0.5,
    )
    top = axes.get_ylim()[1]
    for level in THRESHOLDS:
        fraction = np.mean(scores >= level)
        axes.axvline(level, color="#777777", linewidth=0.8, linestyle=":")
        label = f"{100 * fraction:.0f} % ≥ {level}"
        background = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(level + 0.008, top * 1.03, label, fontsize=8, color="#555555", va="top", bbox=background, zorder=5)
    blind = over_videos([WHOLE_VIDEO.answer(sample) for sample in timed], sample_iou) or 0.0
    mean = over_videos(timed, sample_iou) or 0.0
    axes.axvline(mean, color=MODEL, linewidth=1.8, label=f"mIoU {100 * mean:.1f} %")
    axes.axvline(blind, color=BLIND, linewidth=1.8, linestyle="--", label=f"the whole video {100 * blind:.1f} %")
    axes.set(xlabel="IoU of answer and truth", ylabel="answers", xlim=(0, 1), ylim=(0, top * 1.05))
    axes.set_title(f"{len(timed)} answers about time", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.92))
    _draw_grid(axes)
    return saved(figure, picture)


def plot_iou_by_length(samples: Sequence[Sample], picture: Path) -> Path:
    """Draws IoU against the length of the true event, in seconds and in % of its video, with means over bins.

    Raises:
        InputError: if no question is about time.
    """
    from matplotlib.figure import Figure

    timed = _timed(samples)
    scores = np.array([sample_iou(sample) for sample in timed])  # n
    blind_scores = np.array([sample_iou(WHOLE_VIDEO.answer(sample)) for sample in timed])  # n
    length_s = np.array([sum(span.length_s for span in sample.truth_spans) for sample in timed])  # n
    fraction = length_s / np.array([sample.length_s for sample in timed])  # n
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_means(left, np.maximum(length_s, 1e-2), scores, blind_scores)
    left.set(xscale="log", xlabel="length of the true event in seconds", ylabel="IoU", ylim=(-0.03, 1.03))
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    _draw_means(right, 100 * fraction, scores, blind_scores)
    right.set(xlabel="length of the true event in % of the video")
    return saved(figure, picture)


def _draw_means(axes: Any, length: np.ndarray, scores: np.ndarray, blind_scores: np.ndarray) -> None:
    """Draws every answer as a dot, and means over bins that have the same number of answers."""
    axes.scatter(length, scores, s=9, color=MODEL, alpha=0.25, linewidths=0)
    bins = [group for group in np.array_split(np.argsort(length, kind="stable"), _bins(len(length))) if len(group)]
    middle = [float(np.median(length[group])) for group in bins]  # K
    means = np.array([scores[group].mean() for group in bins])  # K
    intervals = np.array([bootstrap_interval(scores[group].tolist()) for group in bins])  # K 2
    below_and_above = np.abs(intervals.T - means)
    axes.errorbar(middle, means, yerr=below_and_above, color=MODEL, marker="o", capsize=3, label="model, 95 % interval")
    blind_means = [blind_scores[group].mean() for group in bins]
    axes.plot(middle, blind_means, color=BLIND, linestyle="--", marker="s", markersize=4, label="the whole video")
    _draw_grid(axes)


def _bins(count: int) -> int:
    return int(np.clip(count // 15, 1, 8))


def _timed(samples: Sequence[Sample]) -> list[Sample]:
    timed = [sample for sample in samples if sample.truth_spans]
    if not timed:
        raise InputError("no question is about time: at least one is needed to draw IoU")
    return timed


def _draw_grid(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
