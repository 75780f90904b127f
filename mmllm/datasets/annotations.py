"""Reading annotation files row by row. Each row is kept, repaired or refused.

Every reader of this room returns `Annotations`, which give place and reason for each repaired or refused row.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened
from mmllm.video.names import nearest

Policy = Literal["repair", "skip", "raise"]
"""What to do with a bad row. repair: clip times to the video, swap reversed ends, and skip rows beyond repair.
skip: skip all bad rows, also those that could be repaired. raise: raise an error at the first bad row."""

Item = TypeVar("Item")
Derived = TypeVar("Derived")


@dataclass(frozen=True, kw_only=True)
class RowProblem:
    """Why a row was refused or repaired."""

    where: str
    """Line or record number, with the record's name if it has one."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class MissingVideo(InputError):
    """The video or image of a row does not exist."""

    def __init__(self, video: str, folder: Path) -> None:
        super().__init__(f"{video} is not in {folder}{nearest(Path(folder) / video)}")
        self.video = video


@dataclass(kw_only=True)
class Annotations(Generic[Item]):
    """The items of an annotation file, and what happened to each of its rows."""

    source: str
    items: list[Item] = field(default_factory=list)
    rows: int = 0
    """Number of rows, good or bad."""
    bad: list[RowProblem] = field(default_factory=list)
    repaired: list[RowProblem] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    """Names that occur more than once."""
    missing: list[str] = field(default_factory=list)
    """Videos and images that do not exist; their rows are bad."""
    outside: list[tuple[float, float]] = field(default_factory=list)
    """Each time that was outside of its video and was clipped, with the video's duration, both in seconds."""

    def totals(self) -> dict[str, int]:
        """Counts of all rows, of kept items, of bad and repaired rows, and of duplicates."""
        return {
            "rows": self.rows,
            "kept": len(self.items),
            "bad_rows": len(self.bad),
            "repaired_rows": len({problem.where for problem in self.repaired}),
            "duplicates": len(self.duplicates),
        }

    def derive(self, turn: Callable[[Item], list[Derived]]) -> Annotations[Derived]:
        """The same counts and problems, with each item replaced by the items that `turn` makes of it."""
        return Annotations(
            source=self.source,
            items=[derived for item in self.items for derived in turn(item)],
            rows=self.rows,
            bad=self.bad,
            repaired=self.repaired,
            duplicates=self.duplicates,
            missing=self.missing,
            outside=self.outside,
        )


class RowReader(Generic[Item]):
    """Collects rows into `Annotations` by a policy for bad rows."""

    def __init__(self, source: Path, policy: Policy) -> None:
        self.result: Annotations[Item] = Annotations(source=str(source))
        self.policy = policy
        self._names: set[str] = set()
        self._where = ""

    @contextmanager
    def row(self, where: str) -> Iterator[list[Item]]:
        """A block that reads one row: it appends the row's items to the list, or raises `InputError` if it is bad.

        Raises:
            InputError: naming file and row, if the row is bad and the policy is to raise.
        """
        self.result.rows += 1
        items: list[Item] = []
        self._where, earlier_repairs = where, len(self.result.repaired)
        try:
            yield items
        except InputError as problem:
            del self.result.repaired[earlier_repairs:]  # a refused row is not a repaired one
            if isinstance(problem, MissingVideo):
                self.result.missing.append(problem.video)
            if self.policy == "raise":
                raise InputError(f"{self.result.source}, {where}: {problem}") from None
            self.result.bad.append(RowProblem(where=where, reason=str(problem)))
        else:
            self.result.items += items

    def require_new_name(self, name: str) -> None:
        """Takes the name of a row, which must differ from those of earlier rows.

        Raises:
            InputError: if an earlier row has the same name.
        """
        if name in self._names:
            self.result.duplicates.append(name)
            raise InputError(f"{name!r} occurs a second time")
        self._names.add(name)

    def unique(self, name: str) -> str:
        """The name, with a number behind it if an earlier row has the same name."""
        if name not in self._names:
            self._names.add(name)
            return name
        self.result.duplicates.append(name)
        numbered = next(f"{name}#{number}" for number in itertools.count(2) if f"{name}#{number}" not in self._names)
        self._names.add(numbered)
        return numbered

    def span(self, start_s: Any, end_s: Any, duration_s: float | None) -> Span:
        """The interval, repaired if the policy allows it.

        Args:
            start_s: the value in the file.
            end_s: the value in the file.
            duration_s: the video's length; None if it is unknown.

        Raises:
            InputError: if an end is not a number of seconds, or if the policy forbids a repair that is necessary.
        """
        start_s, end_s = number(start_s, "a start"), number(end_s, "an end")
        if start_s > end_s:
            self._repair(f"the interval [{start_s:.10g}, {end_s:.10g}] ends before it starts")
            start_s, end_s = end_s, start_s
        if start_s < 0 or (duration_s is not None and end_s > duration_s):
            length = "" if duration_s is None else f" of {duration_s:.10g} s"
            self._repair(f"the interval [{start_s:.10g}, {end_s:.10g}] is not inside the video{length}")
            limit = math.inf if duration_s is None else duration_s
            self.result.outside += [(end, limit) for end in (start_s, end_s) if not 0 <= end <= limit]
            start_s, end_s = (min(max(end, 0.0), limit) for end in (start_s, end_s))
        return Span(start_s, end_s)

    def _repair(self, reason: str) -> None:
        """Records a repair, or raises the reason if the policy forbids repairs."""
        if self.policy != "repair":
            raise InputError(reason)
        self.result.repaired.append(RowProblem(where=self._where, reason=reason))


def load_text(path: Path) -> str:
    """The text of a file, unpacked if it is gzipped.

    Raises:
        InputError: if it cannot be read or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read: {problem}") from None


def load_json(path: Path) -> tuple[Any, list[str]]:
    """The value of a JSON file, and all keys that occur twice in one of its objects (the last value counts).

    Raises:
        InputError: naming line and column, if the file is not JSON.
    """
    repeated_keys: list[str] = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value_by_key = dict(pairs)
        if len(value_by_key) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated_keys.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return value_by_key

    try:
        return json.loads(load_text(path), object_pairs_hook=object_of), repeated_keys
    except (json.JSONDecodeError, RecursionError) as problem:
        raise InputError(f"{path}: not JSON: {problem}") from None


def text_of(row: Any, key: str) -> str:
    """The text under a key of a row; not empty.

    Raises:
        InputError: if the row has no such text under this key.
    """
    value = _value(row, key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be a text, not {shortened(repr(value))}")
    return value


def list_of(row: Any, key: str) -> list[Any]:
    """The list under a key of a row.

    Raises:
        InputError: if the row has no list under this key.
    """
    value = _value(row, key)
    if not isinstance(value, list):
        raise InputError(f"{key!r} must be a list, not {shortened(repr(value))}")
    return value


def duration_of(row: Any, key: str = "duration") -> float:
    """The positive number of seconds under a key of a row.

    Raises:
        InputError: if the row has no such number under this key.
    """
    seconds = number(_value(row, key), repr(key))
    if seconds <= 0:
        raise InputError(f"{key!r} must be a positive number of seconds, not {seconds:g}")
    return seconds


def number(value: Any, what: str, allowed: str = "a number of seconds") -> float:
    """The value as a finite number.

    Args:
        value: the value in the file.
        what: names the value in the message.
        allowed: what the message calls an allowed value.

    Raises:
        InputError: if it is not a finite number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if math.isfinite(seconds):
            return seconds
    raise InputError(f"{what} must be {allowed}, not {shortened(repr(value))}")


def _value(row: Any, key: str) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"expected an object with the key {key!r}, not {shortened(repr(row))}")
    if key not in row:
        raise InputError(f"the key {key!r} is missing")
    return row[key]
