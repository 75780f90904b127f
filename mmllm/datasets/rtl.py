"""ActivityNet-RTL (LITA, arXiv 2403.19046, section 3.4): questions about times whose answers need reasoning.

Training file: `{"v_<id>": {"duration": s, "QA": [{"q": ..., "a": ...}]}}`. Test file: `[{"vid": "<id>",
"question_id": ..., "question": ..., "answer": "<12.4> <30> He ...", "duration": s}]`. A question or a QA may have the
key `family`, which mmllm adds. Its answer may then be text without times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, duration_of, list_of, text_of
from mmllm.datasets.folders import VideoFolder, bare_id, find_video, folder_of
from mmllm.datasets.records import Question
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.answers import parse_answer

FAMILY = "temporal_reasoning"
TEST_KEYS = ("vid", "question_id", "question", "answer", "duration", "family")


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
    reader.look_at_keys(qa, ("q", "a", "family"), "a QA")
    question = Question(
        question_id=f"{bare}_{number}",
        vid=bare,
        question=text_of(qa, "q").strip(),
        answer=text_of(qa, "a").strip(),
        duration_s=duration_of(row),
        family=_family(qa),
        video=find_video(folder, bare),
    )
    reader.look_at_stamps(question.answer, question.duration_s, interval=True)
    reader.require_new_name(question.question_id)
    return question


def _test_question(reader: RowReader[Question], row: Any, folder: VideoFolder | None) -> Question:
    reader.look_at_keys(row, TEST_KEYS)
    question_id, vid = text_of(row, "question_id"), bare_id(text_of(row, "vid"))
    duration_s, answer = duration_of(row), text_of(row, "answer").strip()
    if "family" not in row:
        parse_answer(answer, duration_s, strict=True)
    reader.look_at_stamps(answer, duration_s, interval=True)
    question = Question(
        question_id=question_id,
        vid=vid,
        question=text_of(row, "question").strip(),
        answer=answer,
        duration_s=duration_s,
        family=_family(row),
        video=find_video(folder, vid),
    )
    reader.require_new_name(question_id)
    return question


def _family(row: Any) -> str:
    return text_of(row, "family") if "family" in row else FAMILY
