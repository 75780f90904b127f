"""Visual tokens as ids that no tokenizer has: for code that takes prompts as ids, and no embeddings.

    ids         5 17 4 | 1048576 1048577 1048578 | 9 12     the video's tokens have ids of their own, the same in
    embeddings  e e e  |    v       v       v    | e e      every question about it: so they are read once for all

N ids, M visual tokens, D width
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.errors import MmllmError
from mmllm.llm.layers import with_modules

LAST = 2**31 - 1
"""Ids are stored as int32."""


class VirtualIds:
    """Visual tokens by their ids. An id is never given twice; several threads may ask.

    Args:
        first: the first id that is given, above all ids of words.
    """

    def __init__(self, first: int) -> None:
        self.first = self.following = first
        self._rows: dict[int, Tensor] = {}
        """First id of the tokens of each kept medium -> these tokens; ascending, as ids are given."""
        self._given: dict[tuple[int, ...], int] = {}
        """Identities of a prompt's media -> the first id of their tokens."""
        self._lock = threading.RLock()  # media may go while this thread holds it

    def ids_of(self, media: Sequence[Any], rows: Tensor) -> Tensor:
        """int64, M: the ids of visual tokens. They are forgotten when one of the media they belong to is gone.

        Args:
            media: what the tokens show; the same objects have the same tokens, and so the same ids.
            rows: M D, the tokens.

        Raises:
            MmllmError: if all ids are given.
        """
        key = tuple(map(id, media))
        with self._lock:
            start = self._given.get(key)
            if start is None:
                start, end = self.following, self.following + len(rows)
                if end > LAST:
                    raise MmllmError(
                        f"{self.following - self.first} ids of visual tokens are given, and there are no more"
                    )
                self.following = end
                self._rows[start], self._given[key] = rows, start
                for medium in media:
                    weakref.finalize(medium, self._forget, key)
            return torch.arange(start, start + len(rows))

    def _forget(self, key: tuple[int, ...]) -> None:
        with self._lock:
            start = self._given.pop(key, None)
            if start is not None:
                del self._rows[start]

    def write(self, ids: Tensor, into: Tensor) -> None:
        """Writes the tokens of ids (int64, N) into rows (N D). Those of media that are gone stay as they are."""
        with self._lock:
            starts = torch.tensor(list(self._rows), dtype=torch.long)
            places = torch.bucketize(ids.cpu(), starts, right=True).unique() - 1
            for start in starts[places[places >= 0]].tolist():
                rows = self._rows[start]
                own = (ids >= start) & (ids < start + len(rows))
                into[own] = rows[ids[own] - start].to(into)

    def __len__(self) -> int:
        """Of how many media tokens are kept."""
        return len(self._rows)


class TableWithVirtualIds(nn.Module):
    """A table of embeddings that also knows the ids of visual tokens.

    Args:
        table: the LLM's own.
        ids: of visual tokens.
    """

    def __init__(self, table: nn.Module, ids: VirtualIds) -> None:
        super().__init__()
        self.table, self.ids = table, ids

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (..., D) of ids (...); zeros for visual tokens of media that are gone."""
        is_visual = input_ids >= self.ids.first
        embeddings = self.table(input_ids.masked_fill(is_visual, 0))
        if is_visual.any():
            visual = torch.zeros_like(embeddings[is_visual])
            self.ids.write(input_ids[is_visual].long(), visual)
            embeddings[is_visual] = visual
        return embeddings


def with_virtual_ids(llm: nn.Module, ids: VirtualIds) -> Any:
    """The same LLM with a table that knows the ids of visual tokens; the given one does not change.

    Args:
        llm: of transformers, with its head.
        ids: of visual tokens.
    """
    own: nn.Module = llm.get_input_embeddings()  # type: ignore[operator]
    *parents, last = next(name for name, module in llm.named_modules() if module is own).split(".")
    whole = parent = with_modules(llm)
    for name in parents:
        child = with_modules(parent._modules[name])
        parent._modules[name] = child
        parent = child
    parent._modules[last] = TableWithVirtualIds(own, ids)
    return whole
