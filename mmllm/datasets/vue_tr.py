"""VUE-TR, version 1 and 2 (arXiv 2504.15681 and later): all moments of a video that fit a query, of any length.

File: `[{"query_id": 0, "video_id": "<YouTube id>", "duration": s, "query": ..., "gt": [[start, end], ...], "task":
"temporal_retrieval", "duration_category": "short", "query_format": "phrase", "query_modality": "vision+audio"}]`. The
modality says whether one has to look or to listen; it becomes the family.
"""

from __future__ import annotations

from pathlib import Path

from mmllm.datasets.annotations import Annotations, Policy, RowReader, duration_of, list_of, text_of
from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.folders import find_video, folder_of
from mmllm.datasets.moments import moment_question
from mmllm.datasets.prompts import moments_prompt
from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

FAMILY, TASK = "vue_tr", "temporal_retrieval"
KEYS = (
    *("query_id", "video_id", "duration", "query", "gt", "task"),
    *("duration_category", "query_format", "query_modality"),
)


def read_vue_tr(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file.

    Args:
        path: JSON, possibly gzipped.
        videos: folder of `<video_id>.mp4` (any suffix) or of folders of frames.
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
            vid, spans = text_of(row, "video_id"), list_of(row, "gt")
            reader.look_at_keys(row, KEYS)
            if row.get("task", TASK) != TASK:
                raise InputError(f"only the task {TASK!r} is read, not {shortened(repr(row['task']))}")
            name = row.get("query_id")
            if isinstance(name, bool) or not isinstance(name, (int, str)):
                raise InputError(f"'query_id' must be a number or a text, not {shortened(repr(name))}")
            modality = text_of(row, "query_modality") if "query_modality" in row else ""
            items.append(
                moment_question(
                    reader,
                    name=str(name),
                    vid=vid,
                    query=text_of(row, "query"),
                    spans=spans,
                    duration_s=duration_of(row),
                    family=f"{FAMILY} {modality}".strip(),
                    video=find_video(folder, vid),
                    prompt=moments_prompt,
                )
            )
    return reader.result
