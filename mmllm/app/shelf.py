"""Encoded videos that are kept in memory, the least recently used ones given up first."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from mmllm.inference.answering import EncodedVideo


class Shelf:
    """A bounded store of `EncodedVideo`, safe to use from several threads.

    Args:
        count: most entries.
        size: most bytes of all entries.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._kept: OrderedDict[Hashable, EncodedVideo] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all entries; what several share counts once."""
        with self._lock:
            return self._bytes()

    def get(self, key: Hashable) -> EncodedVideo | None:
        """The entry, which becomes the most recently used."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def find(self, wanted: Callable[[Any], bool]) -> EncodedVideo | None:
        """The most recently used entry whose key is wanted."""
        with self._lock:
            return next((self._kept[key] for key in reversed(self._kept) if wanted(key)), None)

    def put(self, key: Hashable, encoded: EncodedVideo) -> None:
        """Keeps an entry, and gives up old ones where there is no room. One that is too large is not kept."""
        with self._lock:
            self._kept[key] = encoded
            self._kept.move_to_end(key)
            while self._kept and (len(self._kept) > self.count or self._bytes() > self.size):
                self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum({id(value): _nbytes(value) for one in self._kept.values() for value in _arrays(one)}.values())


def _arrays(value: Any) -> Iterator[Any]:
    """Every tensor and array in a value made of dataclasses and mappings."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _arrays(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _arrays(item)
    elif hasattr(value, "nbytes"):
        yield value


def _nbytes(array: Any) -> int:
    return int(array.nbytes)
