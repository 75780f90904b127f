"""Ring attention: each process has a part of a row's positions, and attends to all of them.

    keys       keys and values go round; each process adds up what its queries see of them
    queries    queries go round, and what they have seen is sent home (TokenRing); keys and values stay

What is seen of different parts is put together by `mmllm.llm.merging`. Weights are computed again in the backward pass,
in which gradients travel like what they are of: memory holds no square of positions.

B rows, G key heads, R query heads of a key head, H = G R, N positions of a process, n queries and k keys of a block,
D head width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import ConfigError
from mmllm.llm.merging import Attended, attend, merged
from mmllm.llm.ring import RingRow, Transfer

OTHERWISE = ("sliding_window", "softcap", "s_aux", "dropout")
"""Arguments of attentions that see, or weigh, something else."""


def ring_attention(query: Tensor, key: Tensor, value: Tensor, row: RingRow, options: Mapping[str, Any]) -> Tensor:
    """B N H D: the attention output of this process' positions.

    Args:
        query: B H N D, rotated.
        key, value: B G N D, of the same positions.
        row: which these are. All processes of its ring call this together, and go backward together.
        options: of transformers' attention functions.

    Raises:
        ConfigError: if an option asks for another attention.
    """
    if other := [name for name in OTHERWISE if options.get(name)]:
        raise ConfigError(f"ring attention is full attention, and this LLM's has {', '.join(other)}")
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # in autocast, rotation has made them float32
    grouped = rearrange(query, "b (g r) n d -> b g r n d", g=key.shape[1])
    out = _Round.apply(grouped, key.unsqueeze(2), value.unsqueeze(2), row, scaling)
    return rearrange(out, "b g r n d -> b n (g r) d")


class _Round(torch.autograd.Function):
    """Attention of queries (B G R N D) to keys and values (B G 1 N D) of all processes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, row: RingRow, scaling: float) -> Tensor:
        go = _keys_go if row.ring.sends == "keys" else _queries_go
        seen = go(row, query, key, value, scaling)
        ctx.save_for_backward(query, key, value, *seen)
        ctx.row, ctx.scaling = row, scaling
        return seen.out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logsum = ctx.saved_tensors
        (wanted,) = outputs
        delta = (wanted * out).sum(-1, keepdim=True).to(logsum.dtype)
        asked = _Asked(query, wanted.contiguous(), logsum, delta)
        back = _keys_go_back if ctx.row.ring.sends == "keys" else _queries_go_back
        return (*back(ctx.row, asked, key, value, ctx.scaling), None, None)


class _Asked(NamedTuple):
    """What the gradient of queries needs of them."""

    query: Tensor
    """B G R N D."""
    wanted: Tensor
    """B G R N D. The gradient of their output."""
    logsum: Tensor
    """B G R N 1; see `Attended`."""
    delta: Tensor
    """B G R N 1. Their output times its gradient, summed."""


class _Gradients(NamedTuple):
    """Gradients of queries (B G R N D), and of keys and values (B G 1 N D)."""

    query: Tensor
    key: Tensor
    value: Tensor


def _keys_go(row: RingRow, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Attended:
    """What own queries see of all keys."""
    ring, total = row.ring, _nothing(query)
    for step in range(ring.size):
        coming = ring.shifted((key, value), 1) if step < ring.size - 1 else None
        read = (ring.rank - step) % ring.size
        total = merged(total, _part(row, query, key, value, ring.rank, read, scaling))
        if coming is not None:
            key, value = coming.wait()
    return total


def _queries_go(row: RingRow, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Attended:
    """The same; others' queries come by, and own ones get back what they have seen elsewhere."""
    ring, total = row.ring, _nothing(query)
    home: Transfer | None = None
    for step in range(ring.size):
        coming = ring.shifted((query,), 1) if step < ring.size - 1 else None
        seen = _part(row, query, key, value, (ring.rank - step) % ring.size, ring.rank, scaling)
        if home is not None:
            total = merged(total, Attended(*home.wait()))
        if step:
            home = ring.shifted(seen, -step)
        else:
            total = seen
        if coming is not None:
            (query,) = coming.wait()
    return total if home is None else merged(total, Attended(*home.wait()))


def _keys_go_back(row: RingRow, asked: _Asked, key: Tensor, value: Tensor, scaling: float) -> _Gradients:
    """The gradients where keys and values go round, and theirs with them."""
    ring, of_queries = row.ring, torch.zeros_like(asked.query)
    of_keys, of_values = torch.zeros_like(key), torch.zeros_like(value)
    for step in range(ring.size):
        coming = ring.shifted((key, value), 1) if step < ring.size - 1 else None
        part = _part_back(row, asked, key, value, ring.rank, (ring.rank - step) % ring.size, scaling)
        of_queries += part.query
        # after as many steps as there are processes, the gradients are home
        of_keys, of_values = ring.shifted((of_keys + part.key, of_values + part.value), 1).wait()
        if coming is not None:
            key, value = coming.wait()
    return _Gradients(of_queries, of_keys, of_values)


def _queries_go_back(row: RingRow, asked: _Asked, key: Tensor, value: Tensor, scaling: float) -> _Gradients:
    """The gradients where queries go round; theirs are sent home."""
    ring, of_queries = row.ring, torch.zeros_like(asked.query)
    of_keys, of_values = torch.zeros_like(key), torch.zeros_like(value)
    for step in range(ring.size):
        coming = ring.shifted(asked, 1) if step < ring.size - 1 else None
        part = _part_back(row, asked, key, value, (ring.rank - step) % ring.size, ring.rank, scaling)
        of_keys, of_values = of_keys + part.key, of_values + part.value
        of_queries += ring.shifted((part.query,), -step).wait()[0] if step else part.query
        if coming is not None:
            asked = _Asked(*coming.wait())
    return _Gradients(of_queries, of_keys, of_values)


def _nothing(query: Tensor) -> Attended:
    """Attention to no key."""
    logsum = query.new_full((*query.shape[:-1], 1), -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
    return Attended(torch.zeros_like(query), logsum)


def _part(
    row: RingRow, query: Tensor, key: Tensor, value: Tensor, asking: int, reading: int, scaling: float
) -> Attended:
    """What the queries of process `asking` see of the keys of process `reading`."""
    total = _nothing(query)
    for queries, keys, mask in row.pairs(asking, reading):
        part = attend(query[..., queries, :], key[..., keys, :], value[..., keys, :], mask, scaling)
        for whole, seen in zip(total, merged(Attended(*(own[..., queries, :] for own in total)), part), strict=True):
            whole[..., queries, :] = seen
    return total


def _part_back(
    row: RingRow, asked: _Asked, key: Tensor, value: Tensor, asking: int, reading: int, scaling: float
) -> _Gradients:
    """The gradients of what the queries of process `asking` have seen of the keys of process `reading`."""
    total = _Gradients(torch.zeros_like(asked.query), torch.zeros_like(key), torch.zeros_like(value))
    for queries, keys, mask in row.pairs(asking, reading):
        query, wanted, logsum, delta = (part[..., queries, :] for part in asked)
        read, valued = key[..., keys, :], value[..., keys, :]
        weights = ((query @ read.mT * scaling).to(logsum.dtype) - logsum).exp()  # B G R n k
        if mask is not None:
            weights = weights.masked_fill(~mask, 0.0)
        asks = weights * ((wanted @ valued.mT).to(logsum.dtype) - delta) * scaling
        weights, asks = weights.to(query.dtype), asks.to(query.dtype)
        total.query[..., queries, :] += asks @ read
        total.key[..., keys, :] += (asks.mT @ query).sum(2, keepdim=True)
        total.value[..., keys, :] += (weights.mT @ wanted).sum(2, keepdim=True)
    return total
