"""ActivityNet-RTL (LITA, arXiv 2403.19046, section 3.4): questions about times whose answers need reasoning.

Training file: `{"v_<id>": {"duration": s, "QA": [{"q": ..., "a": ...}]}}`. Test file: `[{"vid": "<id>",
"question_id": ..., "question": ..., "answer": "<12.4> <30> He ...", "duration": s}]`. A question or a QA may have keys
that mmllm adds: `family`, and its answer may then be text without times; `group`, a part of the data set; and `spans`,
`[[start_s, end_s], ...]`, the intervals of an answer that has none in its text. `[]`: it does not happen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, duration_of, list_of, text_of
from mmllm.datasets.folders import VideoFolder, bare_id, find_video, folder_of
from mmllm.datasets.moments import spans_of
from mmllm.datasets.records import Question
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.answers import parse_answer
from mmllm.times.stamps import STAMP

FAMILY = "temporal_reasoning"
OWN_KEYS = ("family", "group", "spans")
TEST_KEYS = ("vid", "question_id", "question", "answer", "duration", *OWN_KEYS)


def read_rtl(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a training file or of a test file.

    Args:
        path: JSON, possibly gzipped.
        videos: folder of `v_<id>.mp4` (any suffix) or of folders of frames `v_<id>/`. A row is bad if its video is
            missing. Without the folder, questions have no path of their video.
        policy: what to do with bad rows.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    data, repeated_keys = load_json(path)
    reader: RowReader[Question] = RowReader(path, policy)
    reader.result.duplicates += repeated_keys
    folder = folder_of(videos)
    if isinstance(data, dict) and {"vid", "question_id"} <= set(data):
        data = [data]  # a file of one line
    if isinstance(data, dict):
        for number, (vid, row) in enumerate(data.items(), start=1):
            pairs = row.get("QA") if isinstance(row, dict) else None
            for qa in range(len(pairs) if isinstance(pairs, list) else 1):
                with reader.row(f"record {number} ({vid}), QA {qa + 1}") as items:
                    items.append(_train_question(reader, vid, row, qa, folder))
    elif isinstance(data, list):
        for number, row in enumerate(data, start=1):
            with reader.row(f"record {number}") as items:
                items.append(_test_question(reader, row, folder))
    else:
        raise InputError(f"{path}: neither an object of videos nor a list of questions")
    return reader.result


def _train_question(
    reader: RowReader[Question], vid: str, row: Any, number: int, folder: VideoFolder | None
) -> Question:
    qa, bare = list_of(row, "QA")[number], bare_id(vid)
    if number == 0:
        reader.look_at_keys(row, ("duration", "QA"))
    reader.look_at_keys(qa, ("q", "a", *OWN_KEYS), "a QA")
    question = Question(
        question_id=f"{bare}_{number}",
        vid=bare,
        question=text_of(qa, "q").strip(),
        answer=text_of(qa, "a").strip(),
        duration_s=duration_of(row),
        video=find_video(folder, bare),
        **_own(reader, qa, duration_of(row)),
    )
    reader.look_at_stamps(question.answer, question.duration_s, interval=True)
    reader.require_new_name(question.question_id)
    return question


def _test_question(reader: RowReader[Question], row: Any, folder: VideoFolder | None) -> Question:
    reader.look_at_keys(row, TEST_KEYS)
    question_id, vid = text_of(row, "question_id"), bare_id(text_of(row, "vid"))
    duration_s, answer = duration_of(row), text_of(row, "answer").strip()
    if not set(OWN_KEYS) & set(row):
        parse_answer(answer, duration_s, strict=True)
    reader.look_at_stamps(answer, duration_s, interval=True)
    question = Question(
        question_id=question_id,
        vid=vid,
        question=text_of(row, "question").strip(),
        answer=answer,
        duration_s=duration_s,
        video=find_video(folder, vid),
        **_own(reader, row, duration_s),
    )
    reader.require_new_name(question_id)
    return question


def _own(reader: RowReader[Question], row: Any, duration_s: float) -> dict[str, Any]:
    """The fields of a question that only files of mmllm have."""
    family = text_of(row, "family") if "family" in row else FAMILY
    group = text_of(row, "group") if "group" in row else ""
    if "spans" not in row:
        return {"family": family, "group": group}
    spans = tuple(reader.span(start_s, end_s, duration_s) for start_s, end_s in spans_of(row["spans"]))
    if STAMP.search(row.get("answer", row.get("a"))):
        raise InputError("it has 'spans', but its answer has a time in its text: give one of both")
    return {"family": family, "group": group, "spans": spans, "absent": not spans}
