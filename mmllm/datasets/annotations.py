"""Reading annotation files row by row. Each row is kept, repaired or refused.

Every reader of this room returns `Annotations`, which give place and reason for each repaired or refused row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from mmllm.datasets.row_keys import KeyUses
from mmllm.datasets.spans import Length, fitted, fitted_stamps, number
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.stamps import shortened
from mmllm.video.names import nearest

Policy = Literal["repair", "skip", "raise"]
"""What to do with a bad row. repair: clip times that lie a little over the video's end, and skip rows beyond repair.
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
        super().__init__(f"{shortened(video, 300)} is not in {folder}{nearest(Path(folder) / video)}")
        self.video = video


@dataclass(kw_only=True)
class Annotations(Generic[Item]):
    """The items of an annotation file, and what happened to each of its rows."""

    source: str
    items: list[Item] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """Where each item stands in the file, as in `RowProblem.where`."""
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
    unused: KeyUses = field(default_factory=KeyUses)
    """Keys that no reader uses, and placeholders of no medium."""

    def totals(self) -> dict[str, int]:
        """Counts of all rows, of kept items, of bad and repaired rows, and of duplicates."""
        return {
            "rows": self.rows,
            "kept": len(self.items),
            "bad_rows": len(self.bad),
            "repaired_rows": len({problem.where for problem in self.repaired}),
            "duplicates": len(self.duplicates),
        }

    def refuse(self, where: str, reason: str) -> None:
        """Lists a row as bad."""
        self.bad.append(RowProblem(where=where, reason=reason))

    def derive(self, turn: Callable[[Item], list[Derived]]) -> Annotations[Derived]:
        """The same counts and problems, with each item replaced by the items that `turn` makes of it.

        An item for which `turn` raises an `InputError` becomes a bad row with that reason.
        """
        result: Annotations[Derived] = Annotations(
            source=self.source,
            rows=self.rows,
            bad=list(self.bad),
            repaired=list(self.repaired),
            duplicates=self.duplicates,
            missing=self.missing,
            outside=self.outside,
            unused=self.unused,
        )
        for where, item in zip(self.places, self.items, strict=True):
            try:
                derived = turn(item)
            except InputError as problem:
                result.refuse(where, str(problem))
                continue
            result.items += derived
            result.places += [where] * len(derived)
        return result


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
            self.result.refuse(where, str(problem))
        else:
            self.result.items += items
            self.result.places += [where] * len(items)

    def look_at_keys(self, value: Any, known: Collection[str], what: str = "") -> None:
        """Counts the keys of an object of this row that no reader uses; other values than objects have none.

        Args:
            value: the row, or an object in it.
            known: the keys that are used.
            what: names an object inside the row, such as `a turn`.
        """
        if isinstance(value, dict):
            self.result.unused.add(value, known, self._where, what)

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

    def look_at_placeholders(self, text: str) -> None:
        """Counts what looks like a placeholder in a text of this row but stands for no medium."""
        self.result.unused.add_placeholders(text, self._where)

    def span(self, start_s: Any, end_s: Any, duration_s: float | None) -> Span:
        """The interval, clipped if it ends a little after the video and the policy allows it.

        Args:
            start_s: the value in the file.
            end_s: the value in the file.
            duration_s: the video's length; None if it is unknown.

        Raises:
            InputError: if an end is no number of seconds, the interval has no length or is outside of the video, or
                the policy forbids to clip it.
        """
        length = None if duration_s is None else Length(seconds=duration_s)
        span, problem = fitted(start_s, end_s, length)
        if problem:
            self._repair(problem)
            limit = span.end_s if duration_s is None else duration_s
            self.result.outside += [(end, limit) for end in (start_s, end_s) if not 0 <= end <= limit]
        return span

    def look_at_stamps(self, text: str, duration_s: float | None, *, interval: bool = False) -> None:
        """Checks the times inside a text; with `interval` the first two must be a start and an end.

        Raises:
            InputError: if a time is outside of the video.
        """
        if duration_s is not None and (problem := fitted_stamps(text, Length(seconds=duration_s), interval=interval)):
            self._repair(problem)

    def _repair(self, reason: str) -> None:
        """Records a repair, or raises the reason if the policy forbids repairs."""
        if self.policy != "repair":
            raise InputError(reason)
        self.result.repaired.append(RowProblem(where=self._where, reason=reason))


def text_of(row: Any, key: str) -> str:
    """The text under a key of a row; not empty.

    Raises:
        InputError: if the row has no such text under this key.
    """
    value = _value(row, key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be a text, not {shortened(repr(value))}")
    return whole_text(value, key)


def whole_text(text: str, key: str) -> str:
    """The text, which must be writable as UTF-8.

    Raises:
        InputError: if it holds half of a surrogate pair, such as `\\ud83d` without its other half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise InputError(f"{key!r} holds half a character, {problem.object[problem.start]!r}") from None
    return text


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


def _value(row: Any, key: str) -> Any:
    if not isinstance(row, dict):
        raise InputError(f"expected an object with the key {key!r}, not {shortened(repr(row))}")
    if key not in row:
        raise InputError(f"the key {key!r} is missing")
    return row[key]
