"""Attention of rows in which several questions share a beginning, without the part of the square that nobody sees.

    keys      shared | question 1 | question 2        a mask over the whole row hides most of its square:
    shared      \\    |            |                  each question sees the shared part and itself
    question 1  all  |     \\      |                  here each question is a row of its own, behind the same
    question 2  all  |            |     \\            shared keys

B rows, P positions, Q questions of all rows, L positions of a question, S positions of a shared part, H query heads,
G key heads, R = H / G, D head width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """Where the parts of a batch of packed rows are."""

    beginning: int
    """The longest shared part of all rows, in positions."""
    shared: Tensor
    """bool, Q S. The positions of the shared part in front of each question; S is the longest of these."""
    row: Tensor
    """int64, Q. The row of each question."""
    position: Tensor
    """int64, Q L. Its positions, counted over all rows; the first is repeated at padding."""
    valid: Tensor
    """bool, Q L. False at padding."""


def packed_rows(segments: Tensor) -> PackedRows | None:
    """The parts of rows by their segments (int64, B P: 0 shared, from 1 on the questions, -1 padding).

    None if no row has questions behind a shared part.
    """
    counts = (segments == 0).sum(1)
    positions, rows = [], []
    for number, numbered in enumerate(segments):
        for question in range(1, int(numbered.max()) + 1):
            own = (numbered == question).nonzero().squeeze(1)
            if len(own):
                positions.append(own + number * segments.shape[1])
                rows.append(number)
    if not rows:
        return None
    row = torch.tensor(rows, device=segments.device)
    lengths = torch.tensor([len(own) for own in positions], device=segments.device)
    position = pad_sequence(positions, batch_first=True, padding_value=-1)
    before = counts[row]
    return PackedRows(
        beginning=int(counts.max()),
        shared=torch.arange(int(before.max()), device=segments.device) < before.unsqueeze(1),
        row=row,
        position=position.where(position >= 0, position[:, :1]),
        valid=torch.arange(position.shape[1], device=segments.device) < lengths.unsqueeze(1),
    )


def packed_attention(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scaling: float) -> Tensor:
    """B P H D, the attention output; zero at padding.

    Args:
        query: B H P D, rotated. Each row begins with its shared part.
        key, value: B G P D.
        rows: the parts of the batch.
        scaling: factor of the scores.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # in autocast, rotation has made them float32
    count, places = rows.beginning, query.shape[2]
    begun = [part[:, :, :count] for part in (query, key, value)]
    first = scaled_dot_product_attention(begun[0], begun[1], begun[2], is_causal=True, scale=scaling, enable_gqa=True)
    whole = rearrange(torch.nn.functional.pad(first, (0, 0, 0, places - count)), "b h p d -> (b p) h d")
    out = _questions(query, key, value, rows, scaling).to(whole.dtype)  # Q L H D
    whole = whole.index_copy(0, rows.position[rows.valid], out[rows.valid])
    return rearrange(whole, "(b p) h d -> b p h d", p=places)


def _questions(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scaling: float) -> Tensor:
    """Q L H D: each question attends to the shared part in front of it and to itself."""
    heads = key.shape[1]
    own_query = rearrange(query, "b h p d -> (b p) h d")[rows.position]
    grouped = rearrange(own_query, "q l (g r) d -> q g (r l) d", g=heads) * scaling
    keys, values = (_behind_shared(part, rows) for part in (key, value))  # Q G S+L D
    length = rows.position.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    visible = torch.cat(
        [rows.shared.unsqueeze(1).expand(-1, length, -1), causal.expand(len(rows.row), -1, -1)], dim=2
    )  # Q L S+L
    repeats = grouped.shape[2] // length
    scores = (grouped @ keys.mT).float().masked_fill(~visible.repeat(1, repeats, 1).unsqueeze(1), -torch.inf)
    out = scores.softmax(-1).to(values.dtype) @ values
    return rearrange(out, "q g (r l) d -> q l (g r) d", l=length)


def _behind_shared(part: Tensor, rows: PackedRows) -> Tensor:
    """Q G S+L D: keys or values (B G P D) of the shared part in front of each question, then its own."""
    own = rearrange(rearrange(part, "b g p d -> (b p) g d")[rows.position], "q l g d -> q g l d")
    return torch.cat([part[:, :, : rows.shared.shape[1]][rows.row], own], dim=2)
