"""The best and the worst answers on one page: frames of each video over its time axis, truth and answer below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.errors import InputError
from mmllm.evaluation.metrics import sample_iou
from mmllm.evaluation.samples import Sample
from mmllm.inference.plotting import ANSWER, TRUTH, draw_frames, draw_spans, saved
from mmllm.tokens import VideoClip

FRAMES, FRAME_HEIGHT = 14, 96
"""The most frames of one answer's video, and their size in pixels."""
WIDTH_IN, STRIP_IN, BARS_IN, WRITTEN_IN = 7.1, 0.66, 0.7, 0.75
"""Sizes of one answer in inches: its width, then heights of the strip of frames, of the bars, and of the texts."""


def best_and_worst(samples: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` answers with the highest IoU, and up to `count` with the lowest.

    Each list has a video at most once, and no answer is in both lists. Failed questions are left out.
    """
    answered = [sample for sample in samples if sample.truth_spans and not sample.error]
    ranked = sorted(answered, key=lambda sample: (-sample_iou(sample), sample.question_id))
    count = min(count, -(-len(ranked) // 2))
    best = _first_of_each_video(ranked, count)
    worst = _first_of_each_video([sample for sample in reversed(ranked) if sample not in best], count)
    return best, worst


def _first_of_each_video(ranked: Sequence[Sample], count: int) -> list[Sample]:
    chosen: dict[str, Sample] = {}
    for sample in ranked:
        if len(chosen) < count:
            chosen.setdefault(sample.vid, sample)
    return list(chosen.values())


def plot_contact_sheet(samples: Sequence[Sample], videos: Mapping[str, Path], picture: Path, count: int = 4) -> Path:
    """Draws the best answers on the left and the worst on the right.

    Args:
        samples: answered questions.
        videos: id -> file or folder of frames. A missing video is drawn without frames.
        picture: the file to write.
        count: how many answers on each side.

    Raises:
        InputError: if no question about time was answered.
    """
    from matplotlib.figure import Figure

    best, worst = best_and_worst(samples, count)
    if not best:
        raise InputError("no question about time was answered: at least one is needed for this picture")
    rows = max(len(best), len(worst))
    figure = Figure(figsize=(15.6, 0.5 + (1.15 * STRIP_IN + BARS_IN + WRITTEN_IN) * rows), layout="constrained")
    sides: Any = figure.subfigures(1, 2, wspace=0.02)
    for side, (title, chosen) in zip(sides, (("best answers", best), ("worst answers", worst)), strict=True):
        side.suptitle(title, fontsize=13, fontweight="bold")
        cells: Any = side.subfigures(rows, 1, squeeze=False, hspace=0.03)[:, 0]
        for cell, sample in zip(cells, chosen, strict=False):
            _draw(cell, sample, videos.get(sample.vid))
    return saved(figure, picture)


def _draw(cell: Any, sample: Sample, video: Path | None) -> None:
    strip, axis = cell.subplots(2, 1, height_ratios=[1.15 * STRIP_IN, BARS_IN], sharex=True)
    question = "\n".join(textwrap.wrap(sample.question, 78)[:2])
    strip.set_title(f"IoU {sample_iou(sample):.2f}   {question}", fontsize=9, loc="left")
    clip, problem = _frames(video, sample.length_s)
    strip.set_xlim(0, sample.length_s)
    if clip is None:
        strip.axis("off")
        strip.text(0.5, 0.5, problem, ha="center", va="center", fontsize=8, color="#777777", transform=strip.transAxes)
    else:
        draw_frames(strip, clip, clip.frames, np.arange(len(clip)), sample.prediction_spans)
    answer = "no times" if sample.fallback else "not seen" if sample.denied else "answer"
    draw_spans(axis, [(answer, sample.prediction_spans, ANSWER), ("truth", sample.truth_spans, TRUTH)], sample.length_s)


def _frames(video: Path | None, length_s: float) -> tuple[VideoClip | None, str]:
    """As many frames as fit beside each other, and no problem; or None and the problem.

    The images of a folder are as many a second as the video's length says.
    """
    from mmllm.video.frame_files import FOLDER_FPS, frame_files
    from mmllm.video.opening import FrameFolder, open_video

    if video is None:
        return None, "the path of this video is unknown: give its folder by --videos"
    try:
        fps = (frame_files(video).length / length_s if length_s else 0) or FOLDER_FPS if video.is_dir() else None
        with open_video(video if fps is None else FrameFolder(path=video, fps=fps)) as reader:
            fitting_frames = round(WIDTH_IN / (STRIP_IN * reader.info.width / reader.info.height))
            return reader.sample_uniform(min(max(fitting_frames, 2), FRAMES), size=FRAME_HEIGHT), ""
    except InputError as problem:
        return None, "\n".join(textwrap.wrap(str(problem), 70)[:3])
