"""The order in which items are taken: each once an epoch, by any number of processes, and the same after a stop."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.errors import InputError
from mmllm.train.orders import ShardOrder, Shuffle, order_of


def rows_of_rank(order, rank, ranks, batch, count):
    """The first turns of a process, as accelerate deals batches out: in turns."""
    taken, row = [], 0
    while len(taken) < count:
        if row // batch % ranks == rank:
            taken.append(order.at(row))
        row += 1
    return taken


@st.composite
def shards(draw):
    sizes = draw(st.lists(st.integers(1, 7), min_size=3, max_size=8))
    starts = np.cumsum([0, *sizes])
    return [list(range(start, end)) for start, end in pairwise(starts)]


@given(shards(), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_every_item_comes_once_an_epoch_and_no_two_processes_read_one_shard(shards, ranks, batch, seed):
    order = ShardOrder(shards, seed, ranks, batch)
    count = sum(map(len, shards))
    shard_of = {item: number for number, shard in enumerate(shards) for item in shard}
    turns = [rows_of_rank(order, rank, ranks, batch, 3 * count) for rank in range(ranks)]
    for epoch in range(2):
        own = [[turn.item for turn in taken if turn.epoch == epoch] for taken in turns]
        assert Counter(item for items in own for item in items) == Counter(range(count))
        read = [{shard_of[item] for item in items} for items in own]
        assert sum(map(len, read)) == len(set().union(*read)) == len(shards)
        for items in own:  # a shard is read to its end before the next one begins
            runs = [shard_of[item] for item in items]
            assert len(set(runs)) == 1 + sum(a != b for a, b in pairwise(runs))


@given(shards(), st.integers(1, 3), st.integers(1, 4))
def test_a_row_does_not_depend_on_what_was_asked_before(shards, ranks, batch):
    in_order = ShardOrder(shards, 0, ranks, batch)
    expected = [in_order.at(row) for row in range(80)]
    for row in (79, 3, 40, 0):
        assert ShardOrder(shards, 0, ranks, batch).at(row) == expected[row]
        assert in_order.at(row) == expected[row]


def test_epochs_and_seeds_differ():
    shards = [list(range(number * 5, number * 5 + 5)) for number in range(6)]
    order = [ShardOrder(shards, 0, 1, 2).at(row).item for row in range(60)]
    assert order[:30] != order[30:]
    assert order[:30] != [ShardOrder(shards, 1, 1, 2).at(row).item for row in range(30)]


def test_items_outside_shards_are_shuffled_as_ever():
    order = order_of([None] * 5, 7, batch=2)
    assert isinstance(order, Shuffle)
    assert [order.at(row).item for row in range(10)] == [
        int(np.random.default_rng((7, row // 5)).permutation(5)[row % 5]) for row in range(10)
    ]


def test_rings_of_processes_share_shards_as_so_many_processes_would(tmp_path, monkeypatch):
    videos = [tmp_path / f"train-00000{number // 3}.tar" / f"{number}.mp4" for number in range(12)]
    for video in videos:
        video.parent.touch()

    def items(readers):
        order = order_of(videos, 0, 2, readers)
        return [order.at(row).item for row in range(24)]

    alone = items(None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert items(1) == alone != items(None) == items(2)


def test_fewer_shards_than_processes_are_refused():
    with pytest.raises(InputError, match=r"1 shards for 2 processes.*--shard-mb"):
        ShardOrder([[0, 1]], 0, 2, 1)
