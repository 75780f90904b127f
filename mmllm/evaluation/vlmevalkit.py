"""Prediction files of VLMEvalKit as our samples: .xlsx (its default), .tsv or .json (by PRED_FORMAT), and .csv.

A row has the columns of the data set and `prediction`. The truth of tasks about times stands in `gt` (a list of spans),
in `gt_start` and `gt_end`, or in `answer`, as a list or in words (OMTGBench); the video in `video_id` or `video`, its
length in `duration` if at all. Pickles are refused: to read one is to run what it says.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmllm.datasets.text_files import load_json, load_text
from mmllm.errors import InputError
from mmllm.evaluation.answer_reading import answered
from mmllm.evaluation.lmms_eval import true_spans
from mmllm.evaluation.samples import Sample
from mmllm.evaluation.spreadsheets import sheet_rows
from mmllm.hosting.reading import Reader, read_spans
from mmllm.times.answers import Span
from mmllm.times.stamps import checked_duration, shortened

FAILED = "Failed to obtain answer"
"""How its prediction begins if there is none."""
SUFFIXES = (".xlsx", ".tsv", ".csv", ".json")


def read_vlmevalkit(path: Path, reader: Reader, lengths_s: Mapping[str, float]) -> list[Sample]:
    """The answers of a file.

    Args:
        path: see the top of this file.
        reader: reads times in the answers.
        lengths_s: of the videos, by their id, the name of their file without its suffix. May be empty.

    Raises:
        InputError: naming file and row, if a row is no answer of a task about times, or the file is of another kind.
    """
    samples = []
    for number, row in enumerate(_rows(path), start=1):
        try:
            samples.append(_sample(row, number, reader, lengths_s))
        except InputError as reason:
            raise InputError(f"{path}, row {number}: {reason}") from None
    return samples


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows below the names of the columns. Empty cells are missing."""
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        raise InputError(f"{path}: a pickle can run code when it is read; let VLMEvalKit write .tsv (PRED_FORMAT=tsv)")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: prediction files end in {', '.join(SUFFIXES)}, not {suffix or 'nothing'}")
    if suffix == ".xlsx":
        return sheet_rows(path)
    if suffix == ".json":
        data, _ = load_json(path)
        if not (isinstance(data, list) and all(isinstance(row, dict) for row in data)):
            raise InputError(f"{path}: not a list of objects")
        rows = [
            {str(key): value if isinstance(value, str) else _plain(value) for key, value in row.items()} for row in data
        ]
    else:
        try:
            text = io.StringIO(load_text(path), newline="")
            rows = [dict(row) for row in csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",")]
        except csv.Error as problem:
            raise InputError(f"{path}: not a table: {problem}") from None
    return [
        {key: text for key, text in row.items() if isinstance(text, str) and text not in ("", "nan")} for row in rows
    ]


def _plain(value: Any) -> str:
    """A JSON value as a cell; null is an empty one."""
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _sample(row: dict[str, str], number: int, reader: Reader, lengths_s: Mapping[str, float]) -> Sample:
    video = row.get("video_id") or row.get("video")
    if video is None:
        raise InputError(f"the column 'video' is missing; there are {shortened(', '.join(row), 300)}")
    vid = PurePosixPath(video).name.removesuffix(".mp4")
    spans = _truth(row)
    length_s = _seconds(row["duration"]) if "duration" in row else lengths_s.get(vid)
    sample = Sample(
        question_id=row.get("index", str(number)),
        vid=vid,
        family=row.get("task") or row.get("query_type") or "vlmevalkit",
        question=row.get("question") or row.get("query") or "",
        duration_s=length_s,
        truth_spans=spans,
        absent=not spans,
        error="not answered",
    )
    prediction = row.get("prediction", "")
    if prediction.startswith(FAILED):
        return sample.failed(prediction)
    return answered(sample, prediction, reader)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise InputError(f"'duration' must be a number of seconds, not {shortened(repr(text))}") from None
    return checked_duration(seconds)


def _truth(row: dict[str, str]) -> tuple[Span, ...]:
    """The true spans of a row.

    Raises:
        InputError: if no column has any.
    """
    if "gt" in row:
        return true_spans(row["gt"])
    if "gt_start" in row and "gt_end" in row:
        return true_spans(f"[[{row['gt_start']}, {row['gt_end']}]]")
    if "answer" not in row:
        raise InputError(f"no true times: 'gt', 'gt_start' and 'gt_end', or 'answer'; there are {', '.join(row)}")
    if row["answer"].lstrip()[:1] in ("[", "("):
        return true_spans(row["answer"])
    times = read_spans(row["answer"], None)
    if times.fallback:
        raise InputError(f"no true times in 'answer': {shortened(repr(row['answer']))}")
    return times.spans
