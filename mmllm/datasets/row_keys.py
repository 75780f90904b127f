"""Keys of rows that no reader uses: they are counted, and a misspelt label is an error.

A row with `span` instead of `spans` reads well and teaches a model to answer without times.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmllm.errors import InputError

LABELS = frozenset(
    "span span_s sapns spnas start end start_s end_s starts ends start_time end_time begin begin_time from_s to_s "
    "time times timestamp timestamps relevant_windows relevant_window windows window segment segments interval "
    "intervals moment moments gt_span gt_spans gt_windows ground_truth gt event_span answer_span answer_spans "
    "label_span clip_span".split()
)
"""Keys that other data sets give to what is `spans` here."""
_PLACEHOLDER = re.compile(r"<\|?/?([A-Za-z][A-Za-z]*)(?:[_-]?(?:pad|start|end|here|token|placeholder)?[_-]?\d*)\|?>")
_MEDIA = frozenset(
    "audio audios sound speech music voice video videos vid clip movie image images img imagehere pic picture photo "
    "frame frames vision".split()
)


@dataclass
class KeyUse:
    """How often an unused key or placeholder occurs."""

    first: str
    """The first row that has it."""
    hint: str
    """The nearest key that is used, and where the key stands."""
    count: int = 0


@dataclass
class KeyUses:
    """The unused keys and placeholders of a file."""

    by_name: dict[str, KeyUse] = field(default_factory=dict)

    def add(self, value: Mapping[str, Any], known: Collection[str], where: str, what: str = "") -> None:
        """Counts the keys of an object that are not among the known ones.

        Args:
            value: a row, or an object inside a row.
            known: the keys that a reader uses.
            where: the row.
            what: names an object inside a row, such as `a turn`; empty for the row itself.
        """
        for key in value:
            if key not in known:
                hint = f"did you mean {nearest(key, known)}" if nearest(key, known) else f"used are {_listed(known)}"
                self._count(f"the key {key!r}{f' of {what}' if what else ''}", where, hint)

    def add_placeholders(self, text: str, where: str) -> None:
        """Counts what looks like a placeholder in a text but stands for no medium."""
        for match in _PLACEHOLDER.finditer(text):
            if match[1].lower() in _MEDIA and match[0] not in ("<video>", "<image>"):
                self._count(f"the placeholder {match[0]}", where, "it stays in the text; <video> and <image> are read")

    def _count(self, name: str, where: str, hint: str) -> None:
        use = self.by_name.setdefault(name[:200], KeyUse(first=where, hint=hint))
        use.count += 1

    def __iter__(self) -> Iterator[str]:
        """A line for each unused key or placeholder."""
        for name, use in self.by_name.items():
            times = "once" if use.count == 1 else f"{use.count} times"
            yield f"unused: {name}, {times}, first in {use.first}: {use.hint}"


def refuse_labels(value: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses an object without `spans` whose keys look like times under another name.

    Raises:
        InputError: naming the key.
    """
    if value.get("spans") is not None:
        return
    for key in value:
        name = str(key).lower()
        likeness = difflib.SequenceMatcher(None, name, "spans").ratio()
        if key not in known and (name in LABELS or likeness > 0.8):
            raise InputError(
                f"unknown key {key!r}; did you mean 'spans'? Times are read only from 'spans': [[start_s, end_s], ...] "
                "in seconds"
            )


def nearest(key: str, known: Collection[str]) -> str:
    """The known key that looks most like another one, in quotes; empty if none does."""
    matches = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.6)
    return repr(matches[0]) if matches else ""


def _listed(known: Collection[str]) -> str:
    return ", ".join(sorted(known))
