"""What the tasks of this folder ask models in lmms-eval, and how answers are scored: by our reader and our metric."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.folders import bare_id, find_video, folder_of
from mmllm.errors import InputError
from mmllm.evaluation.span_metrics import iou, reaches
from mmllm.hosting.reading import read_spans
from mmllm.times.answers import parse_answer

FOLDER = "MMLLM_VIDEOS"
"""Environment variable with the folder of videos; `videos` if it is not set."""
Doc = Mapping[str, Any]


def visual(doc: Doc) -> list[str]:
    """The video of a row.

    Raises:
        InputError: if it is not in the folder.
    """
    folder = Path(os.environ.get(FOLDER, "videos"))
    video = find_video(folder_of(folder), bare_id(str(doc["vid"])))
    if video is None:
        raise InputError(f"{doc['vid']}: no such video in {folder}; name its folder in {FOLDER}")
    return [str(video)]


def text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question of a row, in the form of the model's family."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{str(doc['question']).strip()}{around.get('post_prompt', '')}"


def target(doc: Doc) -> str:
    """The true answer, with its stamps."""
    return str(doc["answer"])


def scored(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Overlap of the first answered span with the true one, and whether it is half or more; in per cent.

    An answer without a time overlaps nothing.
    """
    duration_s = float(doc["duration"])
    truth = parse_answer(target(doc), duration_s, strict=True).spans[0]
    spans = read_spans(results[0], duration_s).spans
    overlap = iou(spans[0], truth) if spans else 0.0
    return {"miou": 100 * overlap, "precision_50": 100.0 * reaches(overlap, 0.5)}


def mean(values: Sequence[float]) -> float:
    """The mean of all rows; 0 without any."""
    return sum(values) / len(values) if values else 0.0
