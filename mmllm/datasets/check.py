"""What an annotation file holds, and its problems, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.annotations import Annotations, Policy
from mmllm.datasets.captions import CaptionedVideo
from mmllm.datasets.formats import BESIDE, format_of, read_annotations
from mmllm.datasets.lengths import Lengths, VideoFacts, fit_to_videos
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.shard_damage import damage_of
from mmllm.errors import InputError
from mmllm.runtime.progress import Progress
from mmllm.times.answers import Span
from mmllm.times.vocabulary import ClampCount, TimeTokens
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


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What an annotation file holds, and its rows that can be used."""

    summary: dict[str, Any]
    """See `check_annotations`."""
    usable: Annotations[Any]
    """Without the rows whose videos or images cannot be used."""


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
    | `questions`, `events`, `absent` | items that are questions; annotated intervals; answers that what is asked for \
      does not happen |
    | `whole_video_miou_per_video`, `..._per_event`, `whole_video_p_at_0.5` | scores of the answer "the whole video" |
    | `self_iou` | by the number of time tokens: mean IoU of an event with itself after it was written as time tokens |
    | `out_of_vocabulary_time_tokens` | times that the released code would write as a token that does not exist |
    | `rows`, `kept`, `bad_rows`, `repaired_rows`, `duplicates` | counts of rows and items, see `Annotations` |
    | `unused_keys` | different keys and placeholders that no reader uses |
    | `missing_videos`, `unreadable_videos`, `short_videos`, `other_durations`, `unreadable_images` | counts; None if \
      not checked |
    | `refused` | the problems for which fine-tuning refuses the file |
    | `problems` | all problems in words |
    | `notes` | what is no problem, but good to know, in words |

    Scores are from 0 to 1 (the command's table shows them in per cent). They are None if there is no event with a
    known length of its video.

    Args:
        annotations: a file of any format of `read_annotations`.
        videos: folder of its videos, in which each video must exist.
        format: `auto`, or the format's name.
        durations: see `read_annotations`.
        policy: see `read_annotations`.
        probe: open every existing video and image, and compare every byte of shards with their SHA-256 sums.
        fps: images a second of folders of frames, for rows that have no `fps`; 5 if it is not given.

    Raises:
        InputError: if the file cannot be read or its format is unknown.
    """
    summary = inspect(annotations, videos, format, durations, policy, probe, fps).summary
    if probe and summary["format"] == "shards":
        damage = damage_of(annotations)
        for key in ("refused", "problems"):
            summary[key] = [*damage, *summary[key]]
    return summary


def inspect(
    annotations: Path,
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    policy: Policy = "repair",
    probe: bool = True,
    fps: float | None = None,
) -> Inspection:
    """The summary of `check_annotations`, and the rows that can be used."""
    file_format = format_of(annotations) if format == "auto" else format
    beside = file_format in BESIDE
    lengths = Lengths(fps) if probe else None
    # Scores count all rows, also those whose video is missing; only dialogues cannot be read without their media.
    result = read_annotations(annotations, videos if beside else None, file_format, policy, durations)
    result = fit_to_videos(result, lengths if beside else None, policy)
    with_videos = result
    if videos is not None and not beside:
        with_videos = read_annotations(annotations, videos, file_format, policy, durations)
    checks_videos = videos is not None or beside
    media = _media_problems(with_videos, lengths) if checks_videos else {}
    timed = [video for item in result.items for video in _timed(item, lengths if beside else None)]
    by_kind = {name: list(media.get(name, {}).values()) for name in MEDIA_PROBLEMS}
    missing = list(dict.fromkeys(with_videos.missing))
    refused = [
        *(f"bad row: {problem}" for problem in result.bad),
        *(f"missing: {video}" for video in missing if not beside),  # beside their file, these are bad rows
        *(reason for reasons in by_kind.values() for reason in reasons),
    ]
    remarks = [
        *(f"repaired: {problem}" for problem in result.repaired),
        *(f"duplicate: {name}" for name in result.duplicates),
        *result.unused,
    ]
    summary = {
        "annotations": str(annotations),
        "format": file_format,
        "videos": len({vid for item in result.items for vid in _vids(item)}),
        "items": len(result.items),
        "questions": sum(isinstance(item, Question) for item in result.items),
        "events": sum(len(_spans(item)) for item in result.items),
        "absent": sum(_absent(item) for item in result.items) or None,
        **whole_video_scores(timed),
        "self_iou": {str(count): self_iou(timed, TimeTokens(count=count)) for count in COUNTS},
        "out_of_vocabulary_time_tokens": _out_of_vocabulary(result),
        **result.totals(),
        "unused_keys": len(result.unused.by_name),
        "missing_videos": len(missing) if checks_videos else None,
        **{name: len(by_kind[name]) if checks_videos and probe else None for name in MEDIA_PROBLEMS},
        "refused": refused,
        "problems": [*refused, *remarks],
        "notes": _folder_notes(with_videos, lengths) if checks_videos else [],
    }
    useless = {medium for problems in media.values() for medium in problems}
    usable = with_videos.derive(
        lambda item: (
            [] if useless & {(path, length) for path in _paths(item) for length in (None, item.duration_s)} else [item]
        )
    )
    return Inspection(summary=summary, usable=usable)


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


def _spans(item: CaptionedVideo | Question | Dialogue) -> tuple[Span, ...]:
    """The annotated intervals of an item."""
    if isinstance(item, CaptionedVideo):
        return tuple(event.span for event in item.events)
    if isinstance(item, Question):
        return item.truth().spans
    return tuple(span for turn in item.turns for span in turn.spans)


def _absent(item: CaptionedVideo | Question | Dialogue) -> int:
    """How many answers of an item are that it does not happen."""
    if isinstance(item, Dialogue):
        return sum(turn.absent for turn in item.turns)
    return int(isinstance(item, Question) and item.absent)


def _timed(item: CaptionedVideo | Question | Dialogue, lengths: Lengths | None) -> list[TimedVideo]:
    """An item's intervals; empty if its duration is not known or it has no video."""
    duration_s = item.duration_s
    if duration_s is None and lengths is not None and isinstance(item, Dialogue) and _spans(item):
        length = lengths.length(next(media.path for media in item.media if media.kind == "video"), item.fps)
        duration_s = None if length is None else length.seconds
    if duration_s is None:
        return []
    return [TimedVideo(vid=vid, duration_s=duration_s, spans=_spans(item)) for vid in _vids(item)[:1]]


def _paths(item: CaptionedVideo | Question | Dialogue) -> list[Path]:
    """The files of an item's videos and images."""
    if isinstance(item, Dialogue):
        return [media.path for media in item.media]
    return [] if item.video is None else [item.video]


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


_Medium = tuple[Path, float | None]
"""A video or image, with the length that is wrong; without a length, all its rows are concerned."""
MEDIA_PROBLEMS = ("unreadable_videos", "short_videos", "other_durations", "unreadable_images")


def _media_problems(result: Annotations[Any], lengths: Lengths | None) -> dict[str, dict[_Medium, str]]:
    """Problems of the existing videos and images in words, by the names of `MEDIA_PROBLEMS`."""
    problems: dict[str, dict[_Medium, str]] = {name: {} for name in MEDIA_PROBLEMS}
    if lengths is None:
        return problems
    # the lengths that rows give to a video, and its images a second if it is a folder
    annotated: dict[tuple[Path, float | None], dict[float | None, None]] = {}
    images: dict[Path, None] = {}
    for item in result.items:
        if isinstance(item, Dialogue):
            images |= dict.fromkeys(media.path for media in item.media if media.kind == "image")
        for path in _paths(item):
            if path not in images:
                annotated.setdefault((path, _rate(item)), {})[item.duration_s] = None
    with Progress("look at videos", len(annotated) + len(images), "files") as bar:
        for (path, rate), durations_s in annotated.items():
            bar.advance()
            try:
                facts = lengths.facts(path, rate)
            except InputError as problem:
                problems["unreadable_videos"][path, None] = f"unreadable: {problem}"
                continue
            if facts.frames is not None and facts.frames < 2:
                problems["short_videos"][path, None] = f"short: {path} has {facts.frames} frames"
            problems["other_durations"] |= _other_durations(path, facts, durations_s)
        for path in images:
            bar.advance()
            if reasons := broken_images([path], VideoLimits()):
                problems["unreadable_images"][path, None] = f"unreadable: {reasons[0]}"
    return problems


def _rate(item: CaptionedVideo | Question | Dialogue) -> float | None:
    """Images a second of a folder of frames, as the row says."""
    return None if isinstance(item, CaptionedVideo) else item.fps


def _folder_notes(result: Annotations[Any], lengths: Lengths | None) -> list[str]:
    """What is odd about the folders of frames that can be read."""
    notes: dict[str, None] = {}
    if lengths is None:
        return []
    for item in result.items:
        for path in _paths(item):
            if path.is_dir() and (facts := lengths.known(path, _rate(item))) and facts.note:
                notes[f"{path}: {facts.note}"] = None
    return list(notes)


def _other_durations(path: Path, facts: VideoFacts, durations_s: Iterable[float | None]) -> dict[_Medium, str]:
    """The annotated lengths of a video that differ from its own."""
    problems: dict[_Medium, str] = {}
    for duration_s in durations_s:
        slack_s = max(DURATION_TOLERANCE_S, DURATION_TOLERANCE * (duration_s or 0))
        if duration_s is not None and abs(facts.seconds - duration_s) > slack_s:
            difference = f"{path} is annotated with {duration_s:.2f} s but lasts {facts.seconds:.2f} s"
            guess = _rate_guess(facts, duration_s) if path.is_dir() else ""
            problems[path, duration_s] = f"duration: {difference}{guess}"
    return problems


def _rate_guess(facts: VideoFacts, duration_s: float) -> str:
    """The end of a message about a folder of frames whose rate seems to be another."""
    assert facts.frames is not None
    rate, likely = facts.frames / facts.seconds, facts.frames / duration_s
    nearest = round(likely) if likely >= 0.75 else round(likely, 3)
    return f": {facts.frames} frames; {nearest:g} a second, not {rate:g}? Say it by 'fps' in the row, or by --fps"
