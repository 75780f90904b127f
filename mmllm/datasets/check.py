"""What an annotation file holds, and its problems, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.annotations import Annotations, Policy
from mmllm.datasets.captions import CaptionedVideo
from mmllm.datasets.formats import format_of, read_annotations
from mmllm.datasets.records import Dialogue, Question
from mmllm.errors import InputError
from mmllm.runtime.progress import Progress
from mmllm.times.answers import Span
from mmllm.times.vocabulary import ClampCount, TimeTokens
from mmllm.video.frame_files import FOLDER_FPS, frame_files
from mmllm.video.limits import VideoLimits
from mmllm.video.still_images import broken_images

COUNTS = (10, 25, 50, 100, 200)
"""Numbers of time tokens for which the rounding error is measured."""
DURATION_TOLERANCE_S, DURATION_TOLERANCE = 1.0, 0.05
"""An annotated duration may differ from the decoded one by so many seconds or by this fraction, whichever is more."""


@dataclass(frozen=True, kw_only=True)
class TimedVideo:
    """The events of one annotated item."""

    vid: str
    duration_s: float
    spans: tuple[Span, ...]


def check_annotations(
    annotations: Path,
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    policy: Policy = "repair",
    probe: bool = True,
    fps: float | None = None,
) -> dict[str, Any]:
    """What an annotation file holds, as plain JSON values.

    | key | meaning |
    |---|---|
    | `videos`, `items` | different videos; captioned videos, dialogues or questions that can be used |
    | `questions`, `events` | items that are questions; annotated intervals |
    | `whole_video_miou_per_video`, `..._per_event`, `whole_video_p_at_0.5` | scores of the answer "the whole video" |
    | `self_iou` | by the number of time tokens: mean IoU of an event with itself after it was written as time tokens |
    | `out_of_vocabulary_time_tokens` | times that the released code would write as a token that does not exist |
    | `rows`, `kept`, `bad_rows`, `repaired_rows`, `duplicates` | counts of rows and items, see `Annotations` |
    | `missing_videos`, `unreadable_videos`, `short_videos`, `other_durations` | counts; None if not checked |
    | `problems` | all problems in words |
    | `notes` | what is no problem, but good to know, in words |

    Scores are from 0 to 1 (the command's table shows them in per cent). They are None if there is no event.

    Args:
        annotations: a file of any format of `read_annotations`.
        videos: folder of its videos, in which each video must exist.
        format: `auto`, or the format's name.
        durations: see `read_annotations`.
        policy: see `read_annotations`.
        probe: open every existing video.
        fps: images a second of folders of frames, for rows that have no `fps`; 5 if it is not given.

    Raises:
        InputError: if the file cannot be read or its format is unknown.
    """
    file_format = format_of(annotations) if format == "auto" else format
    # Scores count all rows, also those whose video is missing; only dialogues cannot be read without their media.
    media_folder = videos if file_format == "dialogues" else None
    result = read_annotations(annotations, media_folder, file_format, policy, durations)
    with_videos = result if videos is None else read_annotations(annotations, videos, file_format, policy, durations)
    timed = [video for item in result.items for video in _timed(item)]
    checks_videos = videos is not None or file_format == "dialogues"
    notes: list[str] = []
    media = _media_problems(with_videos, probe, fps, notes) if checks_videos else {}
    return {
        "annotations": str(annotations),
        "format": file_format,
        "videos": len({vid for item in result.items for vid in _vids(item)}),
        "items": len(result.items),
        "questions": sum(isinstance(item, Question) for item in result.items),
        "events": sum(len(video.spans) for video in timed),
        **whole_video_scores(timed),
        "self_iou": {str(count): self_iou(timed, TimeTokens(count=count)) for count in COUNTS},
        "out_of_vocabulary_time_tokens": _out_of_vocabulary(result),
        **result.totals(),
        "missing_videos": len(set(with_videos.missing)) if checks_videos else None,
        **{name: len(media[name]) if checks_videos and probe else None for name in MEDIA_PROBLEMS},
        "problems": [
            *(f"bad row: {problem}" for problem in result.bad),
            *(f"repaired: {problem}" for problem in result.repaired),
            *(f"duplicate: {name}" for name in result.duplicates),
            *(f"missing: {video}" for video in dict.fromkeys(with_videos.missing)),
            *(reason for reasons in media.values() for reason in reasons),
        ],
        "notes": notes,
    }


def whole_video_scores(videos: Iterable[TimedVideo]) -> dict[str, float | None]:
    """mIoU and P@0.5 if the answer to every question is the whole video; None if there is no event."""
    scores: dict[str, list[float]] = {}
    for video in videos:
        for span in video.spans:
            scores.setdefault(video.vid, []).append(span.length_s / max(video.duration_s, span.end_s))
    events = [score for group in scores.values() for score in group]
    return {
        "whole_video_miou_per_video": float(np.mean([np.mean(group) for group in scores.values()])) if events else None,
        "whole_video_miou_per_event": float(np.mean(events)) if events else None,
        "whole_video_p_at_0.5": float(np.mean([score >= 0.5 for score in events])) if events else None,
    }


def self_iou(videos: Iterable[TimedVideo], time_tokens: TimeTokens) -> float | None:
    """Mean IoU of each event with the same event after it was written as time tokens: the best a model can reach."""
    scores = []
    for video in videos:
        for span in video.spans:
            start, end = (
                time_tokens.decode(time_tokens.encode(time_s, video.duration_s), video.duration_s)
                for time_s in (span.start_s, span.end_s)
            )
            overlap_s = max(min(end, span.end_s) - max(start, span.start_s), 0.0)
            union_s = span.length_s + (end - start) - overlap_s
            scores.append(overlap_s / union_s if union_s > 0 else 0.0)
    return float(np.mean(scores)) if scores else None


def _timed(item: CaptionedVideo | Question | Dialogue) -> list[TimedVideo]:
    """An item's intervals; empty if its duration is unknown or it has no video."""
    if item.duration_s is None:
        return []
    if isinstance(item, CaptionedVideo):
        spans = tuple(event.span for event in item.events)
    elif isinstance(item, Question):
        spans = item.truth().spans
    else:
        spans = tuple(span for turn in item.turns for span in turn.spans)
    return [TimedVideo(vid=vid, duration_s=item.duration_s, spans=spans) for vid in _vids(item)[:1]]


def _vids(item: CaptionedVideo | Question | Dialogue) -> list[str]:
    """The ids of an item's videos; of a dialogue's videos, their paths."""
    if isinstance(item, Dialogue):
        return [str(media.path) for media in item.media if media.kind == "video"]
    return [item.vid]


def _out_of_vocabulary(result: Annotations[Any]) -> int:
    """How many times lie outside of their video, in answers and among clipped intervals: no time token exists there."""
    count, times = ClampCount(), TimeTokens()
    for time_s, duration_s in result.outside:
        times.encode(time_s, duration_s, count)
    for item in result.items:
        if isinstance(item, Question) and item.duration_s is not None:
            times.write(item.answer, item.duration_s, count=count)
    return count.clamped


MEDIA_PROBLEMS = ("unreadable_videos", "short_videos", "other_durations")


def _media_problems(result: Annotations[Any], probe: bool, fps: float | None, notes: list[str]) -> dict[str, list[str]]:
    """Problems of the existing videos in words, by the names of `MEDIA_PROBLEMS`; `notes` gets what is no problem."""
    problems: dict[str, list[str]] = {name: [] for name in MEDIA_PROBLEMS}
    if not probe:
        return problems
    annotated: dict[Path, tuple[float | None, float | None]] = {}  # duration and images a second
    for item in result.items:
        rate = fps if isinstance(item, CaptionedVideo) else item.fps or fps
        if isinstance(item, Dialogue):
            annotated |= {media.path: (item.duration_s, rate) for media in item.media if media.kind == "video"}
        elif item.video is not None:
            annotated[item.video] = (item.duration_s, rate)
    images = {
        medium.path: None
        for item in result.items
        if isinstance(item, Dialogue)
        for medium in item.media
        if medium.kind == "image"
    }
    problems["unreadable_videos"] += [
        f"unreadable: {problem}" for problem in broken_images(list(images), VideoLimits())
    ]
    with Progress("look at videos", len(annotated), "videos") as bar:
        for path, (duration_s, rate) in annotated.items():
            bar.advance()
            try:
                frames, decoded_s, note = _folder_facts(path, rate) if path.is_dir() else _file_facts(path)
            except InputError as problem:
                problems["unreadable_videos"].append(f"unreadable: {problem}")
                continue
            notes += [f"{path}: {note}"] if note else []
            if frames is not None and frames < 2:
                problems["short_videos"].append(f"short: {path} has {frames} frames")
            if duration_s is not None:
                allowed = max(DURATION_TOLERANCE_S, DURATION_TOLERANCE * duration_s)
                if abs(decoded_s - duration_s) > allowed:
                    difference = f"{path} is annotated with {duration_s:.2f} s but lasts {decoded_s:.2f} s"
                    guess = _rate_guess(frames, decoded_s, duration_s) if path.is_dir() else ""
                    problems["other_durations"].append(f"duration: {difference}{guess}")
    return problems


def _rate_guess(frames: int | None, decoded_s: float, duration_s: float) -> str:
    """The end of a message about a folder of frames whose rate seems to be another."""
    assert frames is not None
    rate, likely = frames / decoded_s, frames / duration_s
    nearest = round(likely) if likely >= 0.75 else round(likely, 3)
    return f": {frames} frames; {nearest:g} a second, not {rate:g}? Say it by 'fps' in the row, or by --fps"


def _folder_facts(path: Path, fps: float | None) -> tuple[int | None, float, str]:
    """Number of frames of a folder, its length in seconds, and what is odd about it.

    Raises:
        InputError: if it has no frames, or some cannot be decoded.
    """
    frames = frame_files(path)
    if frames.problem:
        raise InputError(f"{path}: {frames.problem}")
    if broken := broken_images(frames.files, VideoLimits()):
        raise InputError(f"{path}: {len(broken)} images cannot be read: {'; '.join(broken[:5])}")
    return len(frames.files), frames.length / (fps or FOLDER_FPS), frames.gaps


def _file_facts(path: Path) -> tuple[int | None, float, str]:
    """Number of frames of a video, its length in seconds, and nothing odd.

    Raises:
        InputError: if it cannot be read.
    """
    from mmllm.video.opening import probe

    info = probe(path)
    return info.num_frames, info.duration_s, ""
