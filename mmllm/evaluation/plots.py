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
from mmllm.evaluation.metrics import THRESHOLDS, bootstrap_interval, over_videos, sample_iou, temporal_scores
from mmllm.evaluation.samples import Sample
from mmllm.inference.plotting import ANSWER, saved

MODEL, FALLBACK, BLIND = "#1f5fa8", "#b9c6d6", ANSWER
GROUPS = {
    "named a time": MODEL,
    "no two times: the whole video": FALLBACK,
    "said that it does not happen": "#7a5195",
    "not answered": "#d8d8d8",
}
"""Kinds of answers in the histogram, and their colours."""
BINS = 20


def plot_iou_histogram(samples: Sequence[Sample], picture: Path) -> Path:
    """Draws a histogram of IoU. Answers without a time and failed questions have colours of their own.

    Questions about events that do not happen have no IoU: the title says how many of them were false alarms.

    Raises:
        InputError: if no question is about an event that happens.
    """
    from matplotlib.figure import Figure

    timed = _timed(samples)
    scores = np.array([sample_iou(sample) for sample in timed])  # n
    kinds = np.array([_kind(sample) for sample in timed])  # n
    present = {name: kinds == name for name in GROUPS if name in kinds}
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        [scores[members] for members in present.values()],
        bins=list(np.linspace(0, 1, BINS + 1)),
        stacked=True,
        color=[GROUPS[name] for name in present],
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
    axes.set_title(_title(samples, len(timed)), loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.92))
    _draw_grid(axes)
    return saved(figure, picture)


def _kind(sample: Sample) -> str:
    """The kind of an answer, a name of `GROUPS`."""
    named, whole, denied, failed = GROUPS
    if sample.error:
        return failed
    return whole if sample.fallback else denied if sample.denied else named


def _title(samples: Sequence[Sample], timed: int) -> str:
    """How many answers there are, and how many of them are wrong about whether it happens at all."""
    scores = temporal_scores(samples, resamples=1)
    title = f"{timed} answers about time"
    if scores["miss_rate"]:
        title += f"; missed {100 * scores['miss_rate']:.0f} %"
    if scores["false_alarm_rate"] is not None:
        title += f"; false alarms {100 * scores['false_alarm_rate']:.0f} % of {scores['absent_questions']} more"
    return title


def plot_iou_by_length(samples: Sequence[Sample], picture: Path) -> Path:
    """Draws IoU against the length of the true event, in seconds and in % of its video, with means over bins.

    Raises:
        InputError: if no question is about an event that happens, or the length of its video is not known.
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
        raise InputError("no question is about the time of an event that happens: at least one is needed to draw IoU")
    return timed


def _draw_grid(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
