"""QVHighlights (arXiv 2107.09609): all moments of a video that fit a description, and how well its clips do.

Lines are `{"qid": 2579, "query": "...", "duration": 150, "vid": "NUsG9BgSes0_210.0_360.0", "relevant_windows":
[[82, 150]], "relevant_clip_ids": [41, ...], "saliency_scores": [[1, 1, 2], ...]}`. What people said of the clips is
read where answers are scored, see `mmllm.evaluation.qvhighlights`. The test split is also released without windows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, duration_of, text_of
from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.folders import find_video, folder_of
from mmllm.datasets.moments import moment_question
from mmllm.datasets.prompts import moments_prompt
from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

FAMILY = "qvhighlights"
KEYS = ("qid", "query", "duration", "vid", "relevant_windows", "relevant_clip_ids", "saliency_scores")


def read_qvhighlights(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file.

    Args:
        path: JSON lines, possibly gzipped.
        videos: folder of `<vid>.mp4` (any suffix) or of folders of frames.
        policy: what to do with bad rows. Repairs: ends a little after the video's end are clipped.

    Raises:
        InputError: if the file cannot be read, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Question] = RowReader(path, policy)
    folder = folder_of(videos)
    for where, row, problem in rows_of(path):
        with reader.row(where) as items:
            if problem:
                raise InputError(problem)
            name, vid = query_id(row), text_of(row, "vid")
            reader.look_at_keys(row, KEYS)
            if "relevant_windows" not in row:
                raise InputError("the key 'relevant_windows' is missing: is this the test split without its truth?")
            items.append(
                moment_question(
                    reader,
                    name=name,
                    vid=vid,
                    query=text_of(row, "query"),
                    spans=row["relevant_windows"],
                    duration_s=duration_of(row),
                    family=FAMILY,
                    video=find_video(folder, vid),
                    prompt=moments_prompt,
                )
            )
    return reader.result


def query_id(row: Any) -> str:
    """The id of a row, a number or a text in the file.

    Raises:
        InputError: if there is none.
    """
    if not isinstance(row, dict):
        raise InputError(f"expected an object with the key 'qid', not {shortened(repr(row))}")
    name = row.get("qid")
    if isinstance(name, bool) or not isinstance(name, (int, str)) or name == "":
        raise InputError(f"'qid' must be a number or a text, not {shortened(repr(name))}")
    return str(name)
