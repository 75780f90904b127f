"""TimeIT, the training data of TimeChat (arXiv 2312.02051): questions whose answers write times as words.

File: `[{"video": "<path>", "QA": [{"q": ..., "a": "The given query happens in 13.0 - 20.0 seconds."}]}]`, where other
answers are `90 - 102 seconds, spread margarine on bread. 114 - 127 seconds, ...`. NExT-QA has the same keys and no
times. One interval in an answer becomes its span. Several stay where they are, as stamps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, MissingVideo, Policy, RowReader, duration_of, list_of, text_of
from mmllm.datasets.folders import is_there
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.stamps import STAMP, stamp

FAMILY = "timeit"
KEYS = ("video", "QA", "source", "duration", "id")
_NUMBER = r"(\d+(?:\.\d+)?)"
_SECONDS = r"(?:seconds?|secs?|s)\b"
_INTERVAL = re.compile(
    rf"(?:\b(?:in|from|at|during|between)\s+)?{_NUMBER}\s*(?:{_SECONDS})?\s*(?:-|–|—|~|\bto\b|\band\b)\s*{_NUMBER}\s*{_SECONDS}",
    re.ASCII | re.IGNORECASE,
)
_MOMENT = re.compile(rf"\b{_NUMBER}\s*{_SECONDS}", re.ASCII | re.IGNORECASE)


def names_times(rows: Any) -> bool:
    """Whether an answer of `{"video", "QA"}` rows names an interval or a moment in seconds."""
    for row in rows if isinstance(rows, list) else [rows]:
        pairs = row.get("QA") if isinstance(row, dict) else None
        for pair in pairs if isinstance(pairs, list) else []:
            answer = pair.get("a") if isinstance(pair, dict) else None
            if isinstance(answer, str) and (_INTERVAL.search(answer) or _MOMENT.search(answer)):
                return True
    return False


def read_timeit(path: Path, media: Path | None = None, policy: Policy = "repair") -> Annotations[Dialogue]:
    """A dialogue for each question of a file.

    Args:
        path: JSON, possibly gzipped.
        media: the folder that paths are relative to; by default the file's folder.
        policy: what to do with bad rows.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    data, _ = load_json(path)
    if isinstance(data, dict) and {"video", "QA"} <= set(data):
        data = [data]  # a file of one line
    if not isinstance(data, list):
        raise InputError(f"{path}: not a list of videos")
    root = Path(path).parent if media is None else media
    reader: RowReader[Dialogue] = RowReader(path, policy)
    for position, row in enumerate(data, start=1):
        pairs = row.get("QA") if isinstance(row, dict) else None
        for qa in range(len(pairs) if isinstance(pairs, list) else 1):
            with reader.row(f"record {position}, QA {qa + 1}") as items:
                if qa == 0:
                    reader.look_at_keys(row, KEYS)
                items.append(_dialogue(reader, row, list_of(row, "QA")[qa], f"{position}_{qa}", root))
    return reader.result


def _dialogue(reader: RowReader[Dialogue], row: Any, pair: Any, name: str, root: Path) -> Dialogue:
    reader.look_at_keys(pair, ("q", "a"), "a QA")
    video = text_of(row, "video")
    if not is_there(root / video):
        raise MissingVideo(video, root)
    duration_s = None if row.get("duration") is None else duration_of(row)
    text, intervals = _with_stamps(text_of(pair, "a"))
    spans = tuple(reader.span(start_s, end_s, duration_s) for start_s, end_s in intervals)
    if len(spans) == 1:
        text = re.sub(r"\s+", " ", STAMP.sub("", text)).replace(" .", ".").strip(" ,:;-")
    else:  # each stays before its sentence
        text = re.sub(rf"({STAMP.pattern} {STAMP.pattern}),", r"\1", text)
        spans = ()
    answer = Turn(role="assistant", text=text, spans=spans)
    question = Turn(role="user", text=text_of(pair, "q").strip(), media=(Media(kind="video", path=root / video),))
    return Dialogue(
        record_id=reader.unique(f"{Path(video).stem}_{name}"),
        family=FAMILY,
        turns=(question, answer),
        duration_s=duration_s,
    )


def _with_stamps(answer: str) -> tuple[str, list[tuple[float, float]]]:
    """An answer with stamps in place of its intervals, and the intervals in seconds."""
    intervals: list[tuple[float, float]] = []

    def stamps(match: re.Match[str]) -> str:
        intervals.append((float(match[1]), float(match[2])))
        return f"{stamp(intervals[-1][0])} {stamp(intervals[-1][1])}"

    return _INTERVAL.sub(stamps, answer).strip(), intervals
