"""A question when something is to be seen, with its true spans: what all data sets of moments have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import RowReader
from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.times.stamps import shortened


def moment_question(
    reader: RowReader[Question],
    *,
    name: str,
    vid: str,
    query: str,
    spans: Any,
    duration_s: float | None,
    family: str,
    video: Path | None,
    prompt: Callable[[str], str],
) -> Question:
    """The question for a row; an empty list of spans says that there is nothing of the kind in the video.

    Args:
        reader: checks the spans, and takes the name, which must be new.
        name: of the question.
        vid: id of the video.
        query: what is looked for, in words.
        spans: as they are in the file, `[[start_s, end_s], ...]`.
        duration_s: length of the video; None if the file does not say it.
        family: the kind of question.
        video: the video's path; None if no folder of videos was given.
        prompt: makes the question of the query.

    Raises:
        InputError: if the spans are no list of pairs of seconds inside the video, or the name is not new.
    """
    pairs = spans_of(spans)
    true_spans = tuple(reader.span(start_s, end_s, duration_s) for start_s, end_s in pairs)
    reader.require_new_name(name)
    return Question(
        question_id=name,
        vid=vid,
        question=prompt(query),
        answer="",
        duration_s=duration_s,
        family=family,
        video=video,
        spans=true_spans,
        absent=not pairs,
    )


def spans_of(value: Any) -> list[tuple[Any, Any]]:
    """The pairs of a list of spans.

    Raises:
        InputError: if it is no list of pairs.
    """
    if not isinstance(value, list):
        raise InputError(f"spans must be a list of [start, end] in seconds, not {shortened(repr(value))}")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise InputError(f"a span must be a start and an end in seconds, not {shortened(repr(pair))}")
    return [(start_s, end_s) for start_s, end_s in value]
