"""Time spans in JSON inside an answer: objects with a start and an end, arrays of pairs, keys that are pairs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mmllm.hosting.written_times import Convert, Pair, clock_pairs, range_pairs, seconds_of, sentence_pairs, whole_pair

_OPENING = re.compile(r'\{\s*["}]|\[(?=\s*[\[{"\d\-\]])')
_MOST_VALUES = 200
"""An answer with more opening brackets is noise; the later ones are not read."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_STARTS = {"start", "begin", "beginning", "from", "starting"}
_ENDS = {"end", "stop", "finish", "to", "until", "ending"}
_BESIDE = {"time", "times", "timestamp", "s", "sec", "secs", "second", "seconds", "at", "clip", "event", "segment"}
_NO_TIMES = {
    "box", "bbox", "boxes", "point", "points", "coordinate", "coordinates", "position", "location", "center", "centre",
    "size", "resolution", "shape", "region", "frame", "frames", "score", "scores", "confidence", "probability", "count",
    "counts", "x", "y", "d", "index", "indices", "id", "ids",
}  # fmt: skip
"""Words of keys whose two numbers are places, frames or scores."""
_SAID = {"answer", "answers", "response", "time", "times", "timestamp", "timestamps", "span", "spans", "interval"}
"""Words of keys whose text is read like an answer."""


def json_values(text: str) -> tuple[list[Any], str]:
    """The JSON objects and arrays in a text, in order, and the text without them."""
    decoder, values, rest = json.JSONDecoder(), [], []
    position = done = tries = 0
    while (match := _OPENING.search(text, position)) is not None and tries < _MOST_VALUES:
        tries += 1
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.start() + 1
            continue
        values.append(value)
        rest.append(text[done : match.start()])
        position = done = end
    return values, " ".join([*rest, text[done:]])


def json_pairs(value: Any, convert: Convert) -> list[Pair]:
    """All pairs of times in a JSON value, in its order."""
    try:
        return list(_pairs(value, convert))
    except RecursionError:
        return []


def says_nothing(value: Any) -> bool:
    """Whether a JSON value is an empty list of spans: `[]`, `{}`, `{"spans": []}` or the same with null."""
    if isinstance(value, dict):
        return all(item is None or item == [] for item in value.values())
    return value == []


def _pairs(value: Any, convert: Convert) -> Iterator[Pair]:
    if isinstance(value, dict):
        yield from _pairs_of_object(value, convert)
    elif isinstance(value, list):
        both = [_time(item, convert) for item in value] if len(value) == 2 else []
        if len(both) == 2 and both[0] is not None and both[1] is not None:
            yield both[0], both[1]
            return
        for item in value:
            yield from _pairs(item, convert)
    elif isinstance(value, str) and (pair := whole_pair(value, convert)) is not None:
        yield pair


def _pairs_of_object(value: dict[str, Any], convert: Convert) -> Iterator[Pair]:
    start = next((item for key, item in value.items() if _names(key, _STARTS)), None)
    end = next((item for key, item in value.items() if _names(key, _ENDS)), None)
    first, last = _time(start, convert), _time(end, convert)
    if first is not None and last is not None:
        yield first, last
        return
    for key, item in value.items():
        if (pair := whole_pair(key, convert)) is not None:
            yield pair
        elif isinstance(item, str) and _words(key) & _SAID:
            yield from clock_pairs(item, convert) or range_pairs(item, convert) or sentence_pairs(item, convert)
        elif not _words(key) & _NO_TIMES:
            yield from _pairs(item, convert)


def _words(key: str) -> set[str]:
    """The words of a key such as `startTime` or `start_time`."""
    return {word.lower() for word in _WORDS.findall(key)}


def _names(key: str, edge: set[str]) -> bool:
    """Whether a key such as `start`, `startTime` or `end_s` names this edge of a span."""
    words = _words(key)
    return bool(words & edge) and not words - edge - _BESIDE


def _time(value: Any, convert: Convert) -> float | None:
    """Seconds of a JSON number, or of a text that is one time."""
    if isinstance(value, str):
        return seconds_of(value, convert)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return convert(float(value)) if math.isfinite(value) else None
    except OverflowError:
        return None
