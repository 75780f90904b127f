"""Ego4D NLQ (arXiv 2110.07058, natural language queries): where a long egocentric clip shows the answer to a question.

File: `{"videos": [{"video_uid": ..., "clips": [{"clip_uid": ..., "video_start_sec": s, "video_end_sec": s,
"annotations": [{"annotation_uid": ..., "language_queries": [{"query": ..., "clip_start_sec": s, "clip_end_sec": s,
...}]}]}]}]}`. Times are those of the clip, which is a file `<clip_uid>.mp4` of its own. The test split has no times.
The files that VSLNet's code makes of these count in feature steps, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, list_of, text_of
from mmllm.datasets.folders import VideoFolder, find_video, folder_of
from mmllm.datasets.moments import moment_question
from mmllm.datasets.prompts import evidence_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.spans import number
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError

FAMILY = "ego4d_nlq"
QUERY_KEYS = frozenset(
    "query clip_start_sec clip_end_sec video_start_sec video_end_sec video_start_frame video_end_frame template "
    "slot_x slot_y verb_x verb_y raw_tags".split()
)
"""Keys of a query; all but the first three say the same in another way, or how the query was written."""


def is_ego4d_nlq(row: Any) -> bool:
    """Whether a JSON value is a file of this format."""
    videos = row.get("videos") if isinstance(row, dict) else None
    return isinstance(videos, list) and bool(videos) and isinstance(videos[0], dict) and "clips" in videos[0]


def read_ego4d_nlq(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file.

    Args:
        path: JSON, possibly gzipped.
        videos: folder of `<clip_uid>.mp4` (any suffix) or of folders of frames.
        policy: what to do with bad rows. Repairs: ends a little after the clip's end are clipped.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    data, _ = load_json(path)
    if not is_ego4d_nlq(data):
        raise InputError(f"{path}: not an object with 'videos' that have 'clips'")
    reader: RowReader[Question] = RowReader(path, policy)
    folder = folder_of(videos)
    for where, clip, annotation, position in _queries(reader, data):
        with reader.row(where) as items:
            items.append(_question(reader, clip, annotation, position, folder))
    return reader.result


def _queries(reader: RowReader[Question], data: Any) -> Iterator[tuple[str, Any, Any, int]]:
    """Place of each query, its clip, its annotation and its number there. Broken objects above it are bad rows."""
    for video_number, video in enumerate(data["videos"], start=1):
        clips = _listed(reader, f"video {video_number}", video, "clips")
        for clip_number, clip in enumerate(clips, start=1):
            where = f"video {video_number}, clip {clip_number}"
            annotations = _listed(reader, where, clip, "annotations")
            for annotation_number, annotation in enumerate(annotations, start=1):
                place = f"{where}, annotation {annotation_number}"
                queries = _listed(reader, place, annotation, "language_queries")
                for position in range(len(queries)):
                    yield f"{place}, query {position + 1}", clip, annotation, position


def _listed(reader: RowReader[Question], where: str, value: Any, key: str) -> list[Any]:
    """The list under a key; if there is none, the object counts as a bad row."""
    listed: list[Any] = []
    if not (isinstance(value, dict) and isinstance(value.get(key), list)):
        with reader.row(where):
            list_of(value, key)
    else:
        listed = value[key]
    return listed


def _question(
    reader: RowReader[Question], clip: Any, annotation: Any, position: int, folder: VideoFolder | None
) -> Question:
    query, clip_uid = annotation["language_queries"][position], text_of(clip, "clip_uid")
    reader.look_at_keys(query, QUERY_KEYS, "a query")
    words = text_of(query, "query")
    if "clip_start_sec" not in query and "clip_end_sec" not in query:
        raise InputError(
            "a query must have 'clip_start_sec' and 'clip_end_sec': is this the test split, without times?"
        )
    begin_s, end_s = (number(clip.get(key), repr(key)) for key in ("video_start_sec", "video_end_sec"))
    if end_s <= begin_s:
        raise InputError(f"the clip ends at {end_s:g} s of its video, which is not after its start at {begin_s:g} s")
    return moment_question(
        reader,
        name=f"{text_of(annotation, 'annotation_uid')}_{position}",
        vid=clip_uid,
        query=words,
        spans=[[query.get("clip_start_sec"), query.get("clip_end_sec")]],
        duration_s=end_s - begin_s,
        family=FAMILY,
        video=find_video(folder, clip_uid),
        prompt=evidence_prompt,
    )
