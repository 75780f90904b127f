"""NExT-QA with open answers: answers of a few words about a video, without times.

LITA's file is `[{"video": "<folder>/<id>.mp4", "QA": [{"q": ..., "a": ...}]}]`. The published table has the columns
`video`, `question`, `answer`, `type`; `type` (CW, CH, TN, TC, TP, DC, DL, DO, DB) becomes the family.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from mmllm.datasets.annotations import (
    Annotations,
    MissingVideo,
    Policy,
    RowReader,
    list_of,
    text_of,
)
from mmllm.datasets.folders import is_there
from mmllm.datasets.prompts import short_answer_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.text_files import checked_line, load_json, load_text
from mmllm.errors import InputError

FAMILY = "video_qa"
COLUMNS = {"video", "question", "answer", "type"}


def read_nextqa(
    path: Path, videos: Path | None = None, policy: Policy = "repair", paths: Path | None = None
) -> Annotations[Question]:
    """The questions of LITA's JSON file or of the published table.

    Args:
        path: JSON or comma-separated values, possibly gzipped.
        videos: folder that holds `<folder>/<id>.mp4`. A row is bad if its video is missing.
        policy: what to do with bad rows.
        paths: JSON object from a video's id to `<folder>/<id>`, for the table, which has only ids.

    Raises:
        InputError: if the file is neither, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Question] = RowReader(path, policy)
    question_counts: Counter[str] = Counter()
    if videos is not None and not videos.is_dir():
        raise InputError(f"{videos}: the folder of videos is missing")

    def question(video: str, raw_question: str, answer: str, family: str) -> Question:
        vid = PurePosixPath(video).stem
        if videos is not None and not is_there(videos / video):
            raise MissingVideo(video, videos)
        number = question_counts[vid]
        question_counts[vid] += 1
        return Question(
            question_id=f"{vid}_{number}",
            vid=vid,
            question=short_answer_prompt(raw_question),
            answer=answer.strip(),
            duration_s=None,
            family=family,
            video=None if videos is None else videos / video,
        )

    path_by_id = _path_by_id(paths)
    if is_table(path):
        for line, row in table(path, COLUMNS):
            with reader.row(f"line {line}") as items:
                for cell in row.values():
                    checked_line(str(cell))
                reader.look_at_keys(row, COLUMNS)
                vid = text_of(row, "video").strip()
                video = f"{path_by_id.get(vid, vid)}.mp4"
                items.append(question(video, text_of(row, "question"), text_of(row, "answer"), text_of(row, "type")))
        return reader.result
    data, _ = load_json(path)
    if isinstance(data, dict) and {"video", "QA"} <= set(data):
        data = [data]  # a file of one line
    if not isinstance(data, list):
        raise InputError(f"{path}: not a list of videos")
    for number, row in enumerate(data, start=1):
        pairs = row.get("QA") if isinstance(row, dict) else None
        for qa in range(len(pairs) if isinstance(pairs, list) else 1):
            with reader.row(f"record {number}, QA {qa + 1}") as items:
                pair = list_of(row, "QA")[qa]
                if qa == 0:
                    reader.look_at_keys(row, ("video", "QA"))
                reader.look_at_keys(pair, ("q", "a"), "a QA")
                items.append(question(text_of(row, "video"), text_of(pair, "q"), text_of(pair, "a"), FAMILY))
    return reader.result


def _path_by_id(paths: Path | None) -> dict[str, str]:
    """`<folder>/<id>` of each video by its id; empty without a file."""
    if paths is None:
        return {}
    data, _ = load_json(paths)
    if not isinstance(data, dict):
        raise InputError(f"{paths}: not an object that maps ids to paths")
    return {str(vid): str(path) for vid, path in data.items()}


def is_table(path: Path) -> bool:
    """Whether a file's name ends in `.csv` or `.csv.gz`."""
    return path.name.removesuffix(".gz").lower().endswith(".csv")


def table(path: Path, columns: set[str]) -> list[tuple[int, dict[str, Any]]]:
    """Line number and cells of each row of comma-separated values.

    Raises:
        InputError: if a column is missing, or the file is not a table.
    """
    rows = csv.DictReader(io.StringIO(load_text(path)))
    try:
        missing = columns - set(rows.fieldnames or ())
        if missing:
            raise InputError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
        return [(rows.line_num, row) for row in rows]
    except csv.Error as problem:
        raise InputError(f"{path}: not a table of comma-separated values: {problem}") from None
