"""Ring attention in two and three gloo processes: outputs and gradients of full attention, whatever goes round."""

import itertools

import pytest
import torch
from torch import distributed
from torch.nn import functional

from mmllm.errors import ConfigError, InputError
from mmllm.llm import ring as module
from mmllm.llm.ring import Ring, RingRow
from mmllm.llm.ring_attention import ring_attention
from mmllm.modeling.placeholders import block_mask

SENDS = ("keys", "queries")
NEAR = {torch.float32: 1e-6, torch.float64: 1e-12}


def joined(sends, size=None):
    """The ring of all processes, or one of several."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return Ring.joined(size or distributed.get_world_size(), sends)


def segments(positions):
    """A row without padding, one with, and one of several questions behind a shared part."""
    rows = torch.zeros(3, positions, dtype=torch.long)
    rows[1, -5:] = -1
    third = positions // 3
    rows[2, third : 2 * third], rows[2, 2 * third :], rows[2, -1] = 1, 2, -1
    return rows


def places(row):
    """Where the positions of this process stand in a row that fills all pieces."""
    return torch.cat([torch.arange(row.size) + piece * row.size for piece in row.ring.pieces(row.ring.rank)])


def compare(ring, heads, key_heads, segment, dtype):
    """Output and gradients of this process' positions, with those of full attention over the whole rows."""
    torch.manual_seed(0)
    rows, positions = segment.shape
    query = torch.randn(rows, heads, positions, 8, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(rows, key_heads, positions, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    read = segment >= 0
    weight = torch.randn(rows, positions, heads, 8, dtype=dtype) * read[..., None, None]
    mask = block_mask(read.long(), segment, dtype)
    whole = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    whole = whole.transpose(1, 2)
    expected = torch.autograd.grad((whole * weight).sum(), (query, key, value))
    row = RingRow.of(segment, ring)
    own, inside = row.own_positions(), places(row) < positions
    parts = [part.detach()[:, :, own].requires_grad_() for part in (query, key, value)]
    out = ring_attention(*parts, row, {"scaling": 0.3})
    near = {"rtol": NEAR[dtype], "atol": NEAR[dtype]}
    seen = read[:, own] & inside
    torch.testing.assert_close(out[seen], whole[:, own][seen], **near)
    assert (out[~seen] == 0).all()
    got = torch.autograd.grad((out * weight[:, own] * inside[:, None, None]).sum(), parts)
    for ours, theirs in zip(got, expected, strict=True):
        near = {"rtol": NEAR[dtype], "atol": NEAR[dtype] * float(theirs.abs().max())}
        torch.testing.assert_close(ours[:, :, inside], theirs[:, :, own[inside]], **near)


def every_case():
    for sends in SENDS:
        ring = joined(sends)
        for (heads, key_heads), dtype in itertools.product([(4, 4), (8, 2), (3, 1)], NEAR):
            for positions in (24, 41):  # pieces are full, or filled up
                compare(ring, heads, key_heads, segments(positions), dtype)
        module.BLOCK = 3  # several blocks of queries in a piece
        compare(ring, 4, 2, segments(41), torch.float64)
        module.BLOCK = 512
        compare(ring, 4, 2, torch.zeros(1, 2, dtype=torch.long), torch.float64)  # fewer positions than pieces


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_it_is_full_attention(together, processes):
    together(processes, every_case)


def two_rings():
    first = distributed.get_rank() < 2 if (ring := joined("queries", 2)) else None
    compare(ring, 4, 2, segments(24 if first else 41), torch.float64)  # each ring has rows of its own


@pytest.mark.slow
def test_four_processes_are_two_rings(together):
    together(4, two_rings)


def other_rows():
    ring = joined("keys")
    with pytest.raises(InputError, match="different rows"):
        RingRow.of(torch.zeros(1, 8 + ring.rank, dtype=torch.long), ring)
    with pytest.raises(ConfigError, match="2 processes do not fill rings of 3"):
        Ring.joined(3, "keys")
    row = RingRow.of(torch.zeros(1, 8, dtype=torch.long), ring)
    with pytest.raises(ConfigError, match="does not pass keyword arguments"):
        row.require_attended(1)
    parts = [torch.zeros(1, 2, 4, 8)] * 3
    for name in ("sliding_window", "softcap", "s_aux", "dropout"):
        with pytest.raises(ConfigError, match=f"full attention, and this LLM's has {name}"):
            ring_attention(*parts, row, {name: 1})


@pytest.mark.slow
def test_other_rows_other_processes_and_other_attentions_are_refused(together):
    together(2, other_rows)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_have_equally_many_pairs_and_all_of_them_together(size):
    positions = 2 * size * 6
    segment = torch.zeros(1, positions, dtype=torch.long)
    counts = []
    for rank in range(size):
        ring = Ring(size=size, rank=rank, sends="keys")
        row = RingRow(ring=ring, segment=segment, size=6, positions=positions, plain=(True,) * 2 * size)
        pairs = [pair for reading in range(size) for pair in row.pairs(rank, reading)]
        counts.append(
            sum(
                (p.queries.stop - p.queries.start) * (p.keys.stop - p.keys.start)
                if p.mask is None
                else int(p.mask.sum())
                for p in pairs
            )
        )
    assert counts == [positions * (positions + 1) // 2 // size] * size
