"""Reading annotation files row by row: what was kept, what was repaired, what was refused and why.

Every reader of this room returns `Annotations`: no row disappears without a line number and a reason.
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

Policy = Literal["repair", "skip", "raise"]
"""What to do with a bad row. repair: clip times to the video and swap reversed ends, skip what cannot be repaired.
skip: skip what would need repair, too. raise: stop at the first such row."""

Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclass(frozen=True, kw_only=True)
class RowProblem:
    """Why a row was refused or repaired."""

    where: str
    """Line or record number, with the record's own name where it has one."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class MissingVideo(InputError):
    """A row's video or image is not where it should be."""

    def __init__(self, video: str, folder: Path) -> None:
        super().__init__(f"{video} is not in {folder}")
        self.video = video


@dataclass(kw_only=True)
class Annotations(Generic[Item]):
    """What a file of annotations holds, and what became of its rows."""

    source: str
    items: list[Item] = field(default_factory=list)
    rows: int = 0
    """Rows seen, good or bad."""
    bad: list[RowProblem] = field(default_factory=list)
    repaired: list[RowProblem] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    """Names that occur more than once."""
    missing: list[str] = field(default_factory=list)
    """Videos and images that were not found; their rows are bad."""
    outside: list[tuple[float, float]] = field(default_factory=list)
    """Time and duration in seconds of each time that left its video and was clipped."""

    def totals(self) -> dict[str, int]:
        """Counts of rows by what became of them."""
        return {
            "rows": self.rows,
            "kept": len(self.items),
            "bad_rows": len(self.bad),
            "repaired_rows": len({problem.where for problem in self.repaired}),
            "duplicates": len(self.duplicates),
        }

    def derive(self, turn: Callable[[Item], list[Other]]) -> Annotations[Other]:
        """The same account of rows, with every item turned into others."""
        return Annotations(
            source=self.source,
            items=[other for item in self.items for other in turn(item)],
            rows=self.rows,
            bad=self.bad,
            repaired=self.repaired,
            duplicates=self.duplicates,
            missing=self.missing,
            outside=self.outside,
        )


class RowReader(Generic[Item]):
    """Gathers rows into `Annotations` under a policy."""

    def __init__(self, source: Path, policy: Policy) -> None:
        self.result: Annotations[Item] = Annotations(source=str(source))
        self.policy = policy
        self._names: set[str] = set()
        self._where = ""

    @contextmanager
    def row(self, where: str) -> Iterator[list[Item]]:
        """A row: what is appended to the list inside the block is kept, unless the block ends by an `InputError`.

        Raises:
            InputError: naming file and row, if the row is bad and the policy is to raise.
        """
        self.result.rows += 1
        kept: list[Item] = []
        self._where, repairs = where, len(self.result.repaired)
        try:
            yield kept
        except InputError as problem:
            del self.result.repaired[repairs:]
            if isinstance(problem, MissingVideo):
                self.result.missing.append(problem.video)
            if self.policy == "raise":
                raise InputError(f"{self.result.source}, {where}: {problem}") from None
            self.result.bad.append(RowProblem(where=where, reason=str(problem)))
        else:
            self.result.items += kept

    def name(self, name: str) -> None:
        """Refuses a name that an earlier row had.

        Raises:
            InputError: if it did.
        """
        if name in self._names:
            self.result.duplicates.append(name)
            raise InputError(f"{name!r} occurs a second time")
        self._names.add(name)

    def unique(self, name: str) -> str:
        """The name, with a number behind it if earlier rows had it."""
        if name not in self._names:
            self._names.add(name)
            return name
        self.result.duplicates.append(name)
        copy = next(f"{name}#{number}" for number in itertools.count(2) if f"{name}#{number}" not in self._names)
        self._names.add(copy)
        return copy

    def span(self, start_s: Any, end_s: Any, duration_s: float | None) -> Span:
        """The interval, repaired if the policy allows.

        Args:
            start_s: as the file has it.
            end_s: as the file has it.
            duration_s: the video's length; None if it is not known.

        Raises:
            InputError: if an end is not a number of seconds, or needs a repair that the policy forbids.
        """
        start_s, end_s = number(start_s, "a start"), number(end_s, "an end")
        if start_s > end_s:
            self._repair(f"the interval [{start_s:.10g}, {end_s:.10g}] runs backwards")
            start_s, end_s = end_s, start_s
        if start_s < 0 or (duration_s is not None and end_s > duration_s):
            length = "" if duration_s is None else f" of {duration_s:.10g} s"
            self._repair(f"the interval [{start_s:.10g}, {end_s:.10g}] leaves the video{length}")
            limit = math.inf if duration_s is None else duration_s
            self.result.outside += [(end, limit) for end in (start_s, end_s) if not 0 <= end <= limit]
            start_s, end_s = (min(max(end, 0.0), limit) for end in (start_s, end_s))
        return Span(start_s, end_s)

    def _repair(self, reason: str) -> None:
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
    """The value of a JSON file, and the keys that an object of it holds twice (JSON keeps the last).

    Raises:
        InputError: naming line and column of what is not JSON.
    """
    twice: list[str] = []

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        known = dict(pairs)
        if len(known) != len(pairs):
            keys = [key for key, _ in pairs]
            twice.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return known

    try:
        return json.loads(load_text(path), object_pairs_hook=checked), twice
    except (json.JSONDecodeError, RecursionError) as problem:
        raise InputError(f"{path}: not JSON: {problem}") from None


def text_of(row: Any, key: str) -> str:
    """A text that is not empty.

    Raises:
        InputError: if the row has none under this key.
    """
    value = _value(row, key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be a text, not {shortened(repr(value))}")
    return value


def list_of(row: Any, key: str) -> list[Any]:
    """A list.

    Raises:
        InputError: if the row has none under this key.
    """
    value = _value(row, key)
    if not isinstance(value, list):
        raise InputError(f"{key!r} must be a list, not {shortened(repr(value))}")
    return value


def duration_of(row: Any, key: str = "duration") -> float:
    """A positive number of seconds.

    Raises:
        InputError: if the row has none under this key.
    """
    seconds = number(_value(row, key), repr(key))
    if seconds <= 0:
        raise InputError(f"{key!r} must be a positive number of seconds, not {seconds:g}")
    return seconds


def number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        InputError: if `value` is not one; `what` names it in the message.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if math.isfinite(seconds):
            return seconds
    raise InputError(f"{what} must be a number of seconds, not {shortened(repr(value))}")


def _value(row: Any, key: str) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"expected an object with the key {key!r}, not {shortened(repr(row))}")
    if key not in row:
        raise InputError(f"the key {key!r} is missing")
    return row[key]
