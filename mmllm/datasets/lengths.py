"""Lengths of videos whose annotation has none: the video is opened, and annotated times are compared with it.

`mmllm check`, fine-tuning and evaluation all call `fit_to_videos`, so that none uses a row that another one refuses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mmllm.datasets.annotations import Annotations, Policy, RowProblem
from mmllm.datasets.records import Dialogue, Question, Turn
from mmllm.datasets.spans import Length, fitted, fitted_stamps
from mmllm.errors import InputError
from mmllm.times.stamps import STAMP
from mmllm.video.info import VideoInfo

Item = TypeVar("Item")

FOLDER_FPS = 5.0
"""Pictures a second in a folder of frames, as in LITA's data."""


class Lengths:
    """What videos hold. Each is opened once; at most one picture is decoded."""

    def __init__(self) -> None:
        self._infos: dict[Path, VideoInfo | InputError] = {}

    def info(self, video: Path) -> VideoInfo:
        """Frames, length and rate of a video.

        Raises:
            InputError: if it cannot be opened.
        """
        if video not in self._infos:
            from mmllm.video.limits import VideoLimits
            from mmllm.video.opening import FrameFolder, probe

            source = FrameFolder(path=video, fps=FOLDER_FPS) if video.is_dir() else video
            try:
                self._infos[video] = probe(source, limits=VideoLimits())
            except InputError as problem:
                self._infos[video] = problem
        info = self._infos[video]
        if isinstance(info, InputError):
            raise info
        return info

    def length(self, video: Path) -> Length | None:
        """The length of a video; None if it cannot be opened."""
        try:
            return Length(seconds=self.info(video).duration_s, annotated=False)
        except InputError:
            return None


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
        length = lengths.length(item.video)
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
    length = lengths.length(videos[0])
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
