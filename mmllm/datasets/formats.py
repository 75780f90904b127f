"""Annotation files: their format is recognised from the content; their items become questions or dialogues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from mmllm.datasets.annotations import Annotations, Policy, load_text
from mmllm.datasets.captions import CaptionedVideo, localization_questions, read_captions
from mmllm.datasets.charades import read_charades
from mmllm.datasets.dialogues import FORMS, read_dialogues
from mmllm.datasets.nextqa import is_table, read_nextqa
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.times.stamps import shortened

Format = Literal["rtl", "captions", "nextqa", "charades", "dialogues"]
FORMATS: tuple[str, ...] = get_args(Format)


def format_of(path: Path) -> Format:
    """The format of an annotation file, recognised from its content.

    Raises:
        InputError: if the file cannot be read, or its format is unknown; the message lists the formats.
    """
    if is_table(path):
        return "nextqa"
    text = load_text(path).lstrip()
    if re.match(r"\S+[ \t]+\S+[ \t]+\S+[ \t]*##", text):
        return "charades"
    row = _first_row(text)
    keys = set(row) if isinstance(row, dict) else set()
    if "timestamps" in keys:
        return "captions"
    if {"vid", "question_id"} <= keys or {"duration", "QA"} <= keys:
        return "rtl"
    if {"video", "QA"} <= keys:
        return "nextqa"
    if keys & set(FORMS) or {"question", "answer"} <= keys:
        return "dialogues"
    raise InputError(
        f"{path}: unknown format; its first row is {shortened(repr(row))}. Known formats are {', '.join(FORMATS)}. "
        "If only the first row is damaged, name the format."
    )


def _first_row(text: str) -> Any:
    """The first value of a list or of an object of objects, or the value of the first line; None if it is not JSON."""
    start = re.match(r"\[\s*", text) or re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(?=\{)', text)
    try:
        return json.JSONDecoder().raw_decode(text, start.end() if start else 0)[0]
    except (ValueError, RecursionError):
        return None


def read_annotations(
    path: Path,
    videos: Path | None = None,
    format: str = "auto",
    policy: Policy = "repair",
    durations: Path | None = None,
) -> Annotations[Any]:
    """The items of a file of any format: captioned videos, dialogues, or questions.

    Args:
        path: the annotations.
        videos: folder of their videos.
        format: `auto`, or the format's name.
        policy: what to do with bad rows.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.

    Raises:
        InputError: if the format is unknown, or the file has another format.
    """
    if format == "auto":
        format = format_of(path)
    if format == "charades" and durations is None:
        raise InputError(f"{path}: Charades-STA needs the lengths of its videos: give Charades' table as durations")
    readers: dict[str, Callable[[], Annotations[Any]]] = {
        "rtl": lambda: read_rtl(path, videos, policy),
        "captions": lambda: read_captions(path, videos, policy),
        "nextqa": lambda: read_nextqa(path, videos, policy, durations),
        "charades": lambda: read_charades(path, durations or path, videos, policy),
        "dialogues": lambda: read_dialogues(path, videos, policy),
    }
    if format not in readers:
        raise InputError(f"unknown format of annotations {format!r}; {closest(format, readers)}")
    return readers[format]()


def questions_of(annotations: Annotations[Any]) -> Annotations[Question]:
    """The questions of annotations, to be scored; of a captioned video, the questions when each event happens.

    Raises:
        InputError: if a dialogue is not one question and one answer about one video.
    """

    def questions(item: CaptionedVideo | Dialogue | Question) -> list[Question]:
        if isinstance(item, CaptionedVideo):
            return localization_questions(item)
        return item.questions() if isinstance(item, Dialogue) else [item]

    return annotations.derive(questions)


def dialogues_of(annotations: Annotations[Any]) -> Annotations[Dialogue]:
    """The dialogues of annotations, to be trained on; of a captioned video, the questions when each event happens.

    Raises:
        InputError: if a question has no path of its video.
    """

    def dialogues(item: CaptionedVideo | Dialogue | Question) -> list[Dialogue]:
        if isinstance(item, CaptionedVideo):
            return [question.dialogue() for question in localization_questions(item)]
        return [item if isinstance(item, Dialogue) else item.dialogue()]

    return annotations.derive(dialogues)


def read_questions(
    path: Path,
    videos: Path | None = None,
    format: str = "auto",
    policy: Policy = "repair",
    durations: Path | None = None,
) -> Annotations[Question]:
    """The questions of a file of any format, see `read_annotations` and `questions_of`."""
    return questions_of(read_annotations(path, videos, format, policy, durations))
