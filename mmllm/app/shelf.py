"""A store of encoded videos in memory; the least recently used ones are removed first."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from mmllm.inference.encoded import EncodedVideo


class Shelf:
    """A bounded store of `EncodedVideo`; several threads may use it.

    Args:
        count: most entries.
        size: most bytes of all entries.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._entries: OrderedDict[Hashable, EncodedVideo] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes of all entries; an array that several entries share counts once."""
        with self._lock:
            return self._bytes()

    def get(self, key: Hashable) -> EncodedVideo | None:
        """The entry under a key, or None; it becomes the most recently used."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def find(self, matches: Callable[[Any], bool]) -> EncodedVideo | None:
        """The most recently used entry whose key matches, or None."""
        with self._lock:
            return next((self._entries[key] for key in reversed(self._entries) if matches(key)), None)

    def put(self, key: Hashable, encoded: EncodedVideo) -> None:
        """Stores an entry and removes old ones until all fit; an entry above the size limit is not stored."""
        with self._lock:
            self._entries[key] = encoded
            self._entries.move_to_end(key)
            self._fit()

    def fit(self) -> None:
        """Removes what is too much after entries have grown: the LLM's caches first, which are made again soonest."""
        with self._lock:
            self._fit()

    def _fit(self) -> None:
        for encoded in list(self._entries.values()):
            if self._bytes() <= self.size:
                break
            encoded.prefix.kept = None
        while self._entries and (len(self._entries) > self.count or self._bytes() > self.size):
            self._entries.popitem(last=False)

    def _bytes(self) -> int:
        sizes = {id(array): int(array.nbytes) for encoded in self._entries.values() for array in _arrays(encoded)}
        return sum(sizes.values())


def _arrays(value: Any) -> Iterator[Any]:
    """Every tensor and array in a value that consists of dataclasses, mappings, lists and tuples."""
    if hasattr(value, "nbytes"):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)
