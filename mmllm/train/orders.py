"""In which order a training takes its items: all of them once in each epoch, in a new order.

Row n depends only on the seed, on n and, for shards, on how many processes, or rings of them, read rows of their own.
So any number of workers gives the same rows, and a stopped training goes on with the very next one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mmllm.errors import InputError
from mmllm.runtime import processes
from mmllm.video.tar_members import tar_of


class Turn(NamedTuple):
    """Which item a row has."""

    epoch: int
    place: int
    """A number that no other row of the epoch has: seed of what else is drawn for the row."""
    item: int


class Order(Protocol):
    """An endless, repeatable order of items."""

    def at(self, row: int) -> Turn:
        """The item of a row."""


class Shuffle:
    """Each epoch is a permutation of all items."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._permuted: tuple[int, np.ndarray] | None = None

    def at(self, row: int) -> Turn:
        """The item of a row."""
        epoch, place = divmod(row, self.count)
        if self._permuted is None or self._permuted[0] != epoch:
            self._permuted = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return Turn(epoch, place, int(self._permuted[1][place]))


class ShardOrder:
    """Each epoch deals the shards out to the processes anew; a process takes its shards one after the other.

    In an epoch no two processes read the same shard, and each item comes once. A process whose shards have fewer items
    begins its next epoch sooner.

    Args:
        shards: for each shard the numbers of its items.
        seed: of the order of shards, and of items inside them.
        ranks: number of processes; where rings of them share rows, number of rings.
        batch: rows of a batch; batches are taken by the processes in turns.

    Raises:
        InputError: if there are fewer shards than processes.
    """

    def __init__(self, shards: Sequence[Sequence[int]], seed: int, ranks: int, batch: int) -> None:
        if len(shards) < ranks:
            raise InputError(
                f"{len(shards)} shards for {ranks} processes, which read different ones: write smaller shards "
                "(mmllm shard --shard-mb), or start fewer processes"
            )
        self.shards, self.seed, self.ranks, self.batch = shards, seed, ranks, batch
        self._starts: list[list[int]] = [[0] for _ in range(ranks)]
        self._items: dict[tuple[int, int], list[int]] = {}

    def at(self, row: int) -> Turn:
        """The item of a row."""
        number, slot = divmod(row, self.batch)
        turn, rank = divmod(number, self.ranks)
        place = turn * self.batch + slot  # among all rows of this process
        starts = self._starts[rank]
        while starts[-1] <= place:
            starts.append(starts[-1] + sum(len(shard) for shard in self._own(rank, len(starts) - 1)))
        epoch = bisect_right(starts, place) - 1
        item = self._epoch(rank, epoch)[place - starts[epoch]]
        return Turn(epoch, item, item)

    def _own(self, rank: int, epoch: int) -> list[Sequence[int]]:
        """The shards of a process in an epoch, in order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))
        return [self.shards[number] for number in order[rank :: self.ranks]]

    def _epoch(self, rank: int, epoch: int) -> list[int]:
        """The items of a process in an epoch, in order; those of the last epoch of each process are kept."""
        if (rank, epoch) not in self._items:
            self._items = {key: items for key, items in self._items.items() if key[0] != rank}
            generator = np.random.default_rng((self.seed, epoch, rank))
            shards = self._own(rank, epoch)
            self._items[rank, epoch] = [shard[i] for shard in shards for i in generator.permutation(len(shard))]
        return self._items[rank, epoch]


def order_of(videos: Sequence[Path | None], seed: int, batch: int, readers: int | None = None) -> Order:
    """The order of items: by shards if all their videos lie in shards, else a shuffle.

    Args:
        videos: the video of each item; None for an item without one.
        seed: of the order.
        batch: rows of a batch of one process.
        readers: how many processes, or rings of them, read rows of their own; None for all processes.

    Raises:
        InputError: if there are fewer shards than processes.
    """
    shards: dict[Path, list[int]] = {}
    for item, video in enumerate(videos):
        tar = None if video is None else tar_of(video)
        if tar is None:
            return Shuffle(len(videos), seed)
        shards.setdefault(tar, []).append(item)
    ranks = processes.count() if readers is None else readers
    return ShardOrder([shards[tar] for tar in sorted(shards)], seed, ranks, batch)
