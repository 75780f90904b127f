"""Answer files of lmms-eval (`*_samples_<task>.jsonl`, written with `--log_samples`) as our samples.

A line has `doc_id`, the model's answer as `filtered_resps`, the truth as `target` (a text such as `[[0.5, 2.0]]`), and
for each metric of a temporal task an object whose only key is `<video>>>><query>>>><truth>`. The row of the data set
itself is not written, so the length of the video is not known from the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmllm.datasets.dialogues import rows_of
from mmllm.datasets.moments import spans_of
from mmllm.errors import InputError
from mmllm.evaluation.answer_reading import answered
from mmllm.evaluation.samples import Sample
from mmllm.hosting.reading import Reader
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened

_BETWEEN = ">>>"


def read_lmms_eval(path: Path, reader: Reader, lengths_s: Mapping[str, float]) -> list[Sample]:
    """The answers of a file.

    Args:
        path: JSON lines.
        reader: reads times in the answers.
        lengths_s: of the videos, by their id, the name of their file without its suffix. May be empty.

    Raises:
        InputError: naming file and line, if a line is no answer of a task about times.
    """
    task = re.search(r"_samples_(.+?)\.jsonl?$", path.name)
    samples = []
    for where, row, problem in rows_of(path):
        try:
            if problem:
                raise InputError(problem)
            samples.append(_sample(row, task[1] if task else "lmms-eval", reader, lengths_s))
        except InputError as reason:
            raise InputError(f"{path}, {where}: {reason}") from None
    return samples


def _sample(row: Any, family: str, reader: Reader, lengths_s: Mapping[str, float]) -> Sample:
    if not (isinstance(row, dict) and "doc_id" in row and "filtered_resps" in row):
        raise InputError(f"not an answer of lmms-eval, which has 'doc_id' and 'filtered_resps': {shortened(repr(row))}")
    video, query, target = _question(row)
    vid = PurePosixPath(video).stem
    spans = true_spans(target)
    sample = Sample(
        question_id=str(row["doc_id"]),
        vid=vid,
        family=family,
        question=query,
        duration_s=lengths_s.get(vid),
        truth_spans=spans,
        absent=not spans,
        error="not answered",
    )
    answer = row["filtered_resps"]
    while isinstance(answer, list) and answer:
        answer = answer[0]  # of several tries, the first one counts there
    if not isinstance(answer, str):
        raise InputError(
            f"'filtered_resps' must be a text or a list of texts, not {shortened(repr(row['filtered_resps']))}"
        )
    return answered(sample, answer, reader)


def _question(row: dict[str, Any]) -> tuple[str, str, str]:
    """Video, query and truth of a line."""
    for value in row.values():
        if isinstance(value, dict) and len(value) == 1:
            (key,) = value
            if key.count(_BETWEEN) >= 2:
                video, rest = key.split(_BETWEEN, 1)
                query, target = rest.rsplit(_BETWEEN, 1)
                return video, query, target
    raise InputError(
        f"no metric names video, query and truth, as tasks about times do (timelens_*, temporal_grounding_charades); "
        f"the line has {shortened(', '.join(map(str, row)), 200)}"
    )


def true_spans(text: str) -> tuple[Span, ...]:
    """The spans of a list in JSON: of pairs, or a single pair.

    Raises:
        InputError: if the text is no such list.
    """
    try:
        value = json.loads(text.replace("(", "[").replace(")", "]"))
    except (ValueError, RecursionError):
        raise InputError(
            f"the truth must be a list of spans such as [[0.5, 2.0]], not {shortened(repr(text))}"
        ) from None
    if isinstance(value, list) and len(value) == 2 and not any(isinstance(item, list) for item in value):
        value = [value]
    pairs = spans_of(value)
    if any(isinstance(time_s, bool) or not isinstance(time_s, (int, float)) for pair in pairs for time_s in pair):
        raise InputError(f"the truth must be a list of spans such as [[0.5, 2.0]], not {shortened(repr(text))}")
    return tuple(Span(float(start_s), float(end_s)) for start_s, end_s in pairs)
