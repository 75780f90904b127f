"""The processes that share the positions of a row, and which of its positions each of them has.

    pieces of a row   0 1 2 3 4 5          a ring of three: each process has one piece of the beginning and one of the
    process           0 1 2 2 1 0          end, so that all have the same number of pairs of a query and a key

B rows, P positions, S positions of a piece, N = 2 S positions of a process
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, distributed

from mmllm.errors import ConfigError, InputError

Sends = Literal["keys", "queries"]
"""What goes round: keys and values, or queries, whose results are sent home (TokenRing)."""

RING = "ring_row"
"""Name of the argument by which an attention gets its row."""
BLOCK = 512
"""So many queries are attended to at a time: their weights are in memory together."""


class Transfer:
    """Tensors on their way."""

    def __init__(self, arriving: Sequence[Tensor], works: Sequence[Any], leaving: Sequence[Tensor]) -> None:
        self.arriving, self.works = arriving, works
        self.leaving = leaving  # held until they have been sent

    def wait(self) -> Sequence[Tensor]:
        """What has come, in place of what was sent."""
        for work in self.works:
            work.wait()
        return self.arriving


@dataclass(frozen=True, kw_only=True)
class Ring:
    """The processes that share rows, seen from one of them."""

    size: int
    """How many they are."""
    rank: int
    """The number of this process among them."""
    sends: Sends
    """What goes round."""
    group: Any = None
    """Their group of `torch.distributed`."""

    @classmethod
    def joined(cls, size: int, sends: Sends) -> Self:
        """The ring of this process. All processes of a run call it together; rank r is in ring r // size.

        Raises:
            ConfigError: if the processes do not fill rings of this size.
        """
        count = distributed.get_world_size() if distributed.is_initialized() else 1
        if count % size:
            raise ConfigError(f"{count} processes do not fill rings of {size}")
        rank = distributed.get_rank()
        groups = [distributed.new_group(list(range(first, first + size))) for first in range(0, count, size)]
        return cls(size=size, rank=rank % size, sends=sends, group=groups[rank // size])

    def shifted(self, tensors: Sequence[Tensor], steps: int) -> Transfer:
        """Sends tensors so many processes on; those that come in their place have the same shapes."""
        leaving = [tensor.contiguous() for tensor in tensors]
        arriving = [torch.empty_like(tensor) for tensor in leaving]
        to, origin = (distributed.get_global_rank(self.group, (self.rank + way) % self.size) for way in (steps, -steps))
        works = distributed.batch_isend_irecv(
            [
                distributed.P2POp(operation, tensor, peer, self.group)
                for operation, peer, own in ((distributed.isend, to, leaving), (distributed.irecv, origin, arriving))
                for tensor in own
            ]
        )
        return Transfer(arriving, works, leaving)

    def pieces(self, rank: int) -> tuple[int, int]:
        """The numbers of the two pieces that a process has."""
        return rank, 2 * self.size - 1 - rank


class Pairs(NamedTuple):
    """Queries and keys that are attended to together."""

    queries: slice
    keys: slice
    mask: Tensor | None
    """bool, B 1 1 n k; None if every query sees every key."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RingRow:
    """A batch whose positions are shared out over a ring."""

    ring: Ring
    segment: Tensor
    """int64, B 2WS: 0 for what all see, from 1 on what sees that and itself, -1 at padding. A position sees none that
    stand behind it."""
    size: int
    """Positions of a piece, S."""
    positions: int
    """Positions of the batch, P; those behind them fill up the last pieces."""
    plain: tuple[bool, ...]
    """Of each piece, whether all of its positions are seen by all behind them."""
    layers: list[int] = field(default_factory=list)
    """The layers that have attended so far."""

    @classmethod
    def of(cls, segment: Tensor, ring: Ring) -> Self:
        """A batch by its segments, int64, B P.

        Raises:
            InputError: if the processes of the ring have different batches.
        """
        rows, positions = segment.shape
        weights = torch.arange(1, positions + 1, device=segment.device)
        own = torch.stack([weights.new_tensor(rows), weights[-1], ((segment + 2) * weights).sum()])
        others = [torch.empty_like(own) for _ in range(ring.size)]
        distributed.all_gather(others, own, group=ring.group)
        if any(not torch.equal(other, own) for other in others):
            raise InputError("the processes of a ring have different rows; they must read the same ones")
        size = -(-positions // (2 * ring.size))
        segment = torch.nn.functional.pad(segment, (0, 2 * ring.size * size - positions), value=-1)
        plain = tuple(bool((piece == 0).all()) for piece in segment.split(size, dim=1))
        return cls(ring=ring, segment=segment, size=size, positions=positions, plain=plain)

    def own_positions(self) -> Tensor:
        """int64, N: where the positions of this process stand in the row; those that fill up repeat the last one."""
        size, counted = self.size, torch.arange(self.size, device=self.segment.device)
        return torch.cat([counted + piece * size for piece in self.ring.pieces(self.ring.rank)]).clamp(
            max=self.positions - 1
        )

    def pairs(self, asking: int, reading: int) -> Iterator[Pairs]:
        """The parts of an attention of one process' queries to another's keys; those that nobody sees are left out."""
        for asked, query_piece in enumerate(self.ring.pieces(asking)):
            for begin in range(0, self.size, BLOCK):
                queries = slice(begin, min(begin + BLOCK, self.size))
                for read, key_piece in enumerate(self.ring.pieces(reading)):
                    if key_piece > query_piece:
                        continue
                    count = queries.stop if key_piece == query_piece else self.size  # no key behind the last query
                    yield Pairs(
                        _behind(queries, asked * self.size),
                        _behind(slice(0, count), read * self.size),
                        self._mask(query_piece, key_piece, queries, count),
                    )

    def _mask(self, query_piece: int, key_piece: int, queries: slice, count: int) -> Tensor | None:
        """bool, B 1 1 n k: which keys of a piece the queries of a piece see."""
        own = query_piece == key_piece
        if self.plain[key_piece] and self.plain[query_piece] and not own:
            return None
        asked = self.segment[:, _behind(queries, query_piece * self.size)].unsqueeze(2)
        read = self.segment[:, _behind(slice(0, count), key_piece * self.size)].unsqueeze(1)
        visible = ((read == 0) | (read == asked)) & (asked >= 0)
        if own:
            visible = visible.tril(queries.start)
        return visible[:, None, None]

    def require_attended(self, layers: int) -> None:
        """Refuses an LLM whose attentions have not read the whole row.

        Raises:
            ConfigError: if a layer has attended to the positions of its own process only.
        """
        if set(self.layers) != set(range(layers)):
            raise ConfigError("this LLM does not pass keyword arguments to its attention: its rows cannot be shared")


def _behind(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)
