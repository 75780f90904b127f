"""TACoS, as 2D-TAN gives it: sentences about cooking videos, with the numbers of their first and last frame.

File: `{"s30-d52.avi": {"timestamps": [[141, 354], ...], "sentences": [...], "fps": 29.4, "num_frames": 7346}}`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, list_of
from mmllm.datasets.folders import VideoFolder, find_video, folder_of
from mmllm.datasets.moments import moment_question, spans_of
from mmllm.datasets.prompts import event_prompt
from mmllm.datasets.records import Question
from mmllm.datasets.spans import number
from mmllm.datasets.text_files import load_json
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

FAMILY = "tacos"
KEYS = ("timestamps", "sentences", "fps", "num_frames")
CONVERTED = "exact_times"
"""A key of the files that VSLNet's code makes of Ego4D, whose frames are feature steps."""


def read_tacos(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file.

    Args:
        path: JSON, possibly gzipped.
        videos: folder of `s30-d52.avi` (any suffix) or of folders of frames.
        policy: what to do with bad rows. Repairs: ends a little after the video's end are clipped; there are some.

    Raises:
        InputError: if the file is of another kind, or a row is bad and the policy is to raise.
    """
    data, repeated_keys = load_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: not an object of videos")
    reader: RowReader[Question] = RowReader(path, policy)
    reader.result.duplicates += repeated_keys
    folder = folder_of(videos)
    for position, (file, row) in enumerate(data.items(), start=1):
        sentences = row.get("sentences") if isinstance(row, dict) else None
        for sentence in range(len(sentences) if isinstance(sentences, list) else 1):
            with reader.row(f"record {position} ({file}), sentence {sentence + 1}") as items:
                items.append(_question(reader, file, row, sentence, folder))
    return reader.result


def _question(reader: RowReader[Question], file: str, row: Any, position: int, folder: VideoFolder | None) -> Question:
    sentences, timestamps = list_of(row, "sentences"), list_of(row, "timestamps")
    if CONVERTED in row:
        raise InputError(f"{CONVERTED!r}: these frames are feature steps of a converted Ego4D; give Ego4D's own file")
    if position == 0:
        reader.look_at_keys(row, KEYS)
    fps, frames = number(row.get("fps"), "'fps'", "a number"), number(row.get("num_frames"), "'num_frames'", "a number")
    if fps <= 0 or frames <= 0:
        raise InputError(f"'fps' and 'num_frames' must be positive, not {fps:g} and {frames:g}")
    if len(sentences) != len(timestamps):
        raise InputError(f"{len(timestamps)} timestamps but {len(sentences)} sentences")
    sentence = sentences[position]
    if not (isinstance(sentence, str) and sentence.strip()):
        raise InputError(f"a sentence must be a text, not {shortened(repr(sentence))}")
    ((first, last),) = spans_of([timestamps[position]])
    seconds = [number(frame, "a time", "the number of a frame") / fps for frame in (first, last)]
    vid = PurePosixPath(file).stem
    return moment_question(
        reader,
        name=f"{vid}_{position}",
        vid=vid,
        query=sentence,
        spans=[seconds],
        duration_s=frames / fps,
        family=FAMILY,
        video=find_video(folder, vid),
        prompt=event_prompt,
    )
