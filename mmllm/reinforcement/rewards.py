"""Verifiable rewards for answers with times, as plain functions in the form of TRL: they work with any of its trainers.

    reward(prompts, completions, **columns of the data) -> a number for each completion

A row of the data has `spans`, the true spans `[[start_s, end_s], ...]` (none: the event does not happen), and
`duration_s`. All rewards are from 0 to 1. A completion without readable times gets 0: a guess of the whole video, which
evaluation would score, is not rewarded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmllm.errors import InputError
from mmllm.evaluation.span_metrics import set_iou, wasserstein_reward
from mmllm.hosting.reading import ReadTimes, Unit, read_spans
from mmllm.times.answers import Span

Completion = str | Sequence[dict[str, Any]]
"""A text, or the messages of a conversation, as TRL gives it."""
Times = Sequence[Sequence[float]]
"""`[[start_s, end_s], ...]`."""


def tiou_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    spans: Sequence[Times],
    duration_s: Sequence[float | None],
    answered: Sequence[Times | None] | None = None,
    unit: Unit | Sequence[Unit] = "s",
    **columns: Any,
) -> list[float]:
    """IoU in time of the answered set of spans with the true set; 1 if both are empty.

    Args:
        prompts: not read.
        completions: what the model wrote.
        spans: the true spans of each row.
        duration_s: length of each row's video, to which answered spans are clipped; None if it is unknown.
        answered: spans that somebody has read already, such as those of time tokens; None for a completion without
            readable times. By default they are read from the texts with `mmllm.hosting.reading.read_spans`.
        unit: what numbers without a unit mean; for all, or for each.
        columns: not read; TRL gives all columns of the data.

    Raises:
        InputError: if a true span runs backwards, or the lengths of the lists differ.
    """
    return _scored(set_iou, completions, spans, duration_s, answered, unit)


def wasserstein_1_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    spans: Sequence[Times],
    duration_s: Sequence[float | None],
    answered: Sequence[Times | None] | None = None,
    unit: Unit | Sequence[Unit] = "s",
    **columns: Any,
) -> list[float]:
    """exp(-3 W1 / time that the truth covers), set-wise; see `mmllm.evaluation.span_metrics.wasserstein_reward`.

    Beside the truth it still tells a near miss from a far one, where IoU is 0 for both. Arguments as for `tiou_reward`.
    """
    return _scored(wasserstein_reward, completions, spans, duration_s, answered, unit)


def format_reward(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    duration_s: Sequence[float | None],
    answered: Sequence[Times | None] | None = None,
    unit: Unit | Sequence[Unit] = "s",
    **columns: Any,
) -> list[float]:
    """1 for a completion whose times can be read, or that says that nothing happens; 0.5 if they have to be mended.

    Mended are spans that end before they begin, or that lie outside of the video. It does not look at the truth.
    Arguments as for `tiou_reward`.
    """
    _require_equal(completions, duration_s, completions if answered is None else answered)
    if answered is not None:
        return [0.0 if times is None else 1.0 for times in answered]
    read = list(_read(completions, duration_s, unit))
    return [0.0 if times.fallback else 0.5 if times.swapped or times.clipped else 1.0 for times in read]


REWARDS: dict[str, Callable[..., list[float]]] = {
    "tiou": tiou_reward,
    "w1": wasserstein_1_reward,
    "format": format_reward,
}
"""Name in a configuration -> the reward."""


def _scored(
    score: Callable[[Sequence[Span], Sequence[Span]], float],
    completions: Sequence[Completion],
    spans: Sequence[Times],
    duration_s: Sequence[float | None],
    answered: Sequence[Times | None] | None,
    unit: Unit | Sequence[Unit],
) -> list[float]:
    """The score of each completion's set of spans against the truth; 0 without readable times."""
    _require_equal(completions, spans, duration_s, completions if answered is None else answered)
    if answered is None:
        read = (None if times.fallback else times.spans for times in _read(completions, duration_s, unit))
    else:
        read = (None if times is None else _as_spans(times) for times in answered)
    return [0.0 if said is None else score(said, _as_spans(truth)) for said, truth in zip(read, spans, strict=True)]


def _read(
    completions: Sequence[Completion], duration_s: Sequence[float | None], unit: Unit | Sequence[Unit]
) -> Iterator[ReadTimes]:
    units = [unit] * len(completions) if isinstance(unit, str) else unit
    for completion, seconds, own in zip(completions, duration_s, units, strict=True):
        yield read_spans(_text(completion), seconds, own)


def _text(completion: Completion) -> str:
    """The words of a completion: a text, or all that the assistant says in a conversation."""
    if isinstance(completion, str):
        return completion
    return "\n".join(_words(message.get("content")) for message in completion if message.get("role") == "assistant")


def _words(content: Any) -> str:
    """The text of a message, which may be a list of items."""
    if isinstance(content, list):
        return "".join(item.get("text", "") for item in content)
    return content or ""


def _as_spans(times: Times) -> tuple[Span, ...]:
    """Pairs of seconds as spans.

    Raises:
        InputError: if one of them is no pair, not finite or runs backwards.
    """
    for pair in times:
        if len(pair) != 2:
            raise InputError(f"a span is [start_s, end_s], not {list(pair)!r:.80}")
    return tuple(Span(float(start_s), float(end_s)) for start_s, end_s in times)


def _require_equal(*columns: Sequence[Any]) -> None:
    """Refuses columns of different lengths.

    Raises:
        InputError: with their lengths.
    """
    if len(lengths := {len(column) for column in columns}) > 1:
        raise InputError(f"a reward needs one row of each column for each completion, not {sorted(lengths)} rows")
