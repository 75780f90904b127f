"""TimeLens (arXiv 2512.14698): descriptions of events with checked times.

TimeLens-Bench has a file each for Charades, ActivityNet and QVHighlights: `{"<vid>": {"duration": s, "spans":
[[start, end], ...], "queries": [...]}}`, a span for each query. TimeLens-100K, for training, has lines `{"source": ...,
"video_path": "<folder>/<vid>.mp4", "duration": s, "events": [{"query": ..., "span": [[start, end]]}]}`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mmllm.datasets.annotations import Annotations, MissingVideo, Policy, RowReader, duration_of, list_of, text_of
from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.folders import VideoFolder, bare_id, find_video, folder_of, is_there
from mmllm.datasets.moments import moment_question
from mmllm.datasets.prompts import event_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

FAMILY = "timelens"
BENCH_KEYS, TRAINING_KEYS = ("duration", "spans", "queries"), ("source", "video_path", "duration", "events")


def read_timelens(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file of the benchmark or of the training data.

    The family of a question is the file's name, such as `charades-timelens`, or the `source` of its line.

    Args:
        path: JSON or JSON lines, possibly gzipped.
        videos: folder of `<vid>.mp4` (any suffix) or of folders of frames; for training data the folder that
            `video_path` is relative to.
        policy: what to do with bad rows. Repairs: ends a little after the video's end are clipped.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Question] = RowReader(path, policy)
    folder = folder_of(videos)
    if not _is_training(path):
        data, repeated_keys = load_json(path)
        if not isinstance(data, dict):
            raise InputError(f"{path}: neither an object of videos nor lines with 'video_path' and 'events'")
        reader.result.duplicates += repeated_keys
        family = path.name.split(".")[0] if "timelens" in path.name.lower() else FAMILY
        for number, (vid, row) in enumerate(data.items(), start=1):
            queries = row.get("queries") if isinstance(row, dict) else None
            for query in range(len(queries) if isinstance(queries, list) else 1):
                with reader.row(f"record {number} ({vid}), query {query + 1}") as items:
                    items.append(_of_bench(reader, vid, row, query, family, folder))
        return reader.result
    for where, row, problem in rows_of(path):
        events = row.get("events") if isinstance(row, dict) else None
        for event in range(len(events) if isinstance(events, list) else 1):
            with reader.row(f"{where}, event {event + 1}") as items:
                if problem:
                    raise InputError(problem)
                name = f"{where.split()[-1]}_{event}"
                items.append(_of_training(reader, row, event, name, folder))
    return reader.result


def _is_training(path: Path) -> bool:
    """Whether the first line of a file, or of a list the first row, is one of the training data."""
    _, row, _ = next(iter(rows_of(path)), ("", None, ""))
    return isinstance(row, dict) and bool({"video_path", "events"} & set(row))


def _of_bench(
    reader: RowReader[Question], vid: str, row: Any, number: int, family: str, folder: VideoFolder | None
) -> Question:
    queries, spans = list_of(row, "queries"), list_of(row, "spans")
    if number == 0:
        reader.look_at_keys(row, BENCH_KEYS)
    if len(queries) != len(spans):
        raise InputError(f"{len(queries)} queries but {len(spans)} spans")
    return moment_question(
        reader,
        name=f"{bare_id(vid)}_{number}",
        vid=bare_id(vid),
        query=_clean(queries[number]),
        spans=[spans[number]],
        duration_s=duration_of(row),
        family=family,
        video=find_video(folder, vid),
        prompt=event_prompt,
    )


def _of_training(reader: RowReader[Question], row: Any, number: int, name: str, folder: VideoFolder | None) -> Question:
    events, file = list_of(row, "events"), text_of(row, "video_path")
    if number == 0:
        reader.look_at_keys(row, TRAINING_KEYS)
    event = events[number]
    reader.look_at_keys(event, ("query", "span"), "an event")
    if not isinstance(event, dict) or "span" not in event:
        raise InputError(f"an event must have 'query' and 'span', not {shortened(repr(event))}")
    if folder is not None and not is_there(folder.root / file):
        raise MissingVideo(file, folder.root)
    source = row.get("source") or FAMILY
    return moment_question(
        reader,
        name=f"{PurePosixPath(file).stem}_{name}",
        vid=PurePosixPath(file).stem,
        query=_clean(event.get("query")),
        spans=event["span"],
        duration_s=duration_of(row),
        family=source if isinstance(source, str) else FAMILY,
        video=None if folder is None else folder.root / file,
        prompt=event_prompt,
    )


def _clean(query: Any) -> str:
    """A query in one line, without full stops at its ends, as its authors ask it."""
    if not (isinstance(query, str) and query.strip(" .\n")):
        raise InputError(f"a query must be a text, not {shortened(repr(query))}")
    return re.sub(r"\s+", " ", query).strip().strip(".").strip()
