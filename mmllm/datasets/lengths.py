"""Lengths of videos whose annotation has none: the video is opened, and annotated times are compared with it.

`mmllm check`, fine-tuning and evaluation all call `fit_to_videos`, so that none uses a row that another one refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from mmllm.datasets.annotations import Annotations, Policy, RowProblem
from mmllm.datasets.records import Dialogue, Question, Turn
from mmllm.datasets.spans import Length, fitted, fitted_stamps
from mmllm.errors import InputError
from mmllm.times.stamps import STAMP
from mmllm.video.frame_files import FOLDER_FPS, frame_files
from mmllm.video.limits import VideoLimits
from mmllm.video.still_images import require_readable

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What an existing video holds."""

    frames: int | None
    """None if only decoding can tell."""
    seconds: float
    note: str = ""
    """What is odd about a folder of frames, in words."""


class Lengths:
    """What videos hold. Each is opened once; at most one picture of a file is decoded."""

    def __init__(self, fps: float | None = None) -> None:
        """`fps` is the rate of folders of frames whose rows do not say it; by default 5 images a second."""
        self.fps = fps or FOLDER_FPS
        self._facts: dict[tuple[Path, float], VideoFacts | InputError] = {}

    def facts(self, video: Path, fps: float | None = None) -> VideoFacts:
        """Frames and length of a video.

        Args:
            video: a file or a folder of frames.
            fps: images a second of the folder by its row.

        Raises:
            InputError: if it cannot be read.
        """
        key = (video, fps or self.fps)
        if key not in self._facts:
            try:
                self._facts[key] = _folder_facts(*key) if video.is_dir() else _file_facts(video)
            except InputError as problem:
                self._facts[key] = problem
        facts = self._facts[key]
        if isinstance(facts, InputError):
            raise facts
        return facts

    def known(self, video: Path, fps: float | None = None) -> VideoFacts | None:
        """Frames and length of a video; None if it cannot be read."""
        try:
            return self.facts(video, fps)
        except InputError:
            return None

    def length(self, video: Path, fps: float | None = None) -> Length | None:
        """The length of a video; None if it cannot be opened."""
        facts = self.known(video, fps)
        return None if facts is None else Length(seconds=facts.seconds, annotated=False)


def _folder_facts(path: Path, fps: float) -> VideoFacts:
    frames = frame_files(path)
    if frames.problem:
        raise InputError(f"{path}: {frames.problem}")
    require_readable(path, frames.files, VideoLimits())
    return VideoFacts(frames=len(frames.files), seconds=frames.length / fps, note=frames.gaps)


def _file_facts(path: Path) -> VideoFacts:
    from mmllm.video.opening import probe

    info = probe(path, limits=VideoLimits())
    return VideoFacts(frames=info.num_frames, seconds=info.duration_s)


def fit_to_videos(annotations: Annotations[Item], lengths: Lengths | None, policy: Policy) -> Annotations[Item]:
    """The annotations, with the times of rows without a duration compared with their video.

    Args:
        annotations: rows whose times are already compared with their annotated duration, if they have one.
        lengths: opens the videos; None to open none. A video that cannot be opened is somebody else's problem.
        policy: what to do with times that lie a little over the end of the video.

    Raises:
        InputError: if a row is bad and the policy is to raise.
    """
    result = annotations.derive(lambda item: [item])
    result.items, result.places = [], []
    for where, item in zip(annotations.places, annotations.items, strict=True):
        try:
            fitting, problems = _fitting(item, lengths)
            if problems and policy != "repair":
                raise InputError(problems[0])
        except InputError as problem:
            if policy == "raise":
                raise InputError(f"{annotations.source}, {where}: {problem}") from None
            result.refuse(where, str(problem))
            continue
        result.items.append(fitting)
        result.places.append(where)
        result.repaired += [RowProblem(where=where, reason=problem) for problem in problems]
    return result


def _fitting(item: Any, lengths: Lengths | None) -> tuple[Any, list[str]]:
    """An item with its times inside its video, and what was clipped."""
    if isinstance(item, Question) and item.duration_s is None and item.spans and item.video is not None and lengths:
        length = lengths.length(item.video, item.fps)
        pairs = [fitted(span.start_s, span.end_s, length) for span in item.spans]
        return replace(item, spans=tuple(span for span, _ in pairs)), [problem for _, problem in pairs if problem]
    if not isinstance(item, Dialogue) or item.duration_s is not None:
        return item, []
    videos = [media.path for media in item.media if media.kind == "video"]
    has_spans = any(turn.spans for turn in item.turns)
    if has_spans and len(videos) != 1:
        raise InputError(f"its spans need exactly one video, or a 'duration'; it has {len(videos)} videos")
    has_stamps = any(STAMP.search(turn.text) for turn in item.turns if turn.role != "system")
    if lengths is None or len(videos) != 1 or not (has_spans or has_stamps):
        return item, []
    length = lengths.length(videos[0], item.fps)
    if length is None:
        return item, []
    turns, problems = [], []
    for turn in item.turns:
        fitting, turn_problems = _fitting_turn(turn, length)
        turns.append(fitting)
        problems += turn_problems
    return replace(item, turns=tuple(turns)), problems


def _fitting_turn(turn: Turn, length: Length) -> tuple[Turn, list[str]]:
    if turn.role == "system":
        return turn, []
    pairs = [fitted(span.start_s, span.end_s, length) for span in turn.spans]
    problems = [problem for _, problem in pairs]
    problems.append(fitted_stamps(turn.text, length, interval=turn.role == "assistant" and not turn.spans))
    return replace(turn, spans=tuple(span for span, _ in pairs)), [problem for problem in problems if problem]
