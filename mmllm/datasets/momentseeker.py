"""MomentSeeker (arXiv 2502.12558): all moments of a long video that fit a request in words.

File (`t2v.json`): `[{"src_video_path": "<folder>/<vid>.mp4", "qry_text": ..., "answering_time_interval": [[start, end],
...], "task": ..., "qry_img_path": "", "qry_video_path": "", ...}]`, with times in seconds. Requests that show an image
or another video beside their words are refused: a question here shows one video.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mmllm.datasets.annotations import Annotations, Policy, RowReader, list_of, text_of
from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.folders import VideoFolder, folder_of, is_there
from mmllm.datasets.moments import moment_question
from mmllm.datasets.prompts import moments_prompt
from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

FAMILY = "momentseeker"
KEYS = (
    *("src_video_path", "qry_text", "qry_img_path", "qry_video_path", "answering_time_interval", "task"),
    *("candidate_video_list", "gt_indices"),
)
"""The last two serve to rank clips that were cut before."""


def read_momentseeker(path: Path, videos: Path | None = None, policy: Policy = "repair") -> Annotations[Question]:
    """The questions of a file. It does not say how long its videos are.

    Args:
        path: JSON, possibly gzipped.
        videos: the folder that `src_video_path` is relative to, or that has `<vid>.mp4` (any suffix) itself.
        policy: what to do with bad rows.

    Raises:
        InputError: if the file cannot be read, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Question] = RowReader(path, policy)
    folder = folder_of(videos)
    for position, (where, row, problem) in enumerate(rows_of(path)):
        with reader.row(where) as items:
            if problem:
                raise InputError(problem)
            file, spans = text_of(row, "src_video_path"), list_of(row, "answering_time_interval")
            reader.look_at_keys(row, KEYS)
            for key, medium in (("qry_img_path", "an image"), ("qry_video_path", "a video")):
                if row.get(key):
                    raise InputError(f"the request shows {medium} ({shortened(repr(row[key]))}): only words are read")
            task = row.get("task")
            items.append(
                moment_question(
                    reader,
                    name=str(position),
                    vid=PurePosixPath(file).stem,
                    query=text_of(row, "qry_text"),
                    spans=spans,
                    duration_s=None,
                    family=f"{FAMILY} {task}" if isinstance(task, str) and task else FAMILY,
                    video=_video(folder, file),
                    prompt=moments_prompt,
                )
            )
    return reader.result


def _video(folder: VideoFolder | None, file: str) -> Path | None:
    if folder is None:
        return None
    return folder.root / file if is_there(folder.root / file) else folder.find(PurePosixPath(file).stem)
