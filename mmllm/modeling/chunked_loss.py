"""The loss of a long row, whose backward pass holds the graph of one chunk of it at a time (SeCO, SpaCO).

    forward   chunk after chunk without a graph; keys and values are kept
    backward  the last chunk first: it is computed again over the kept keys and values of all earlier ones, and its
              gradient is that of its own loss and of what later chunks have asked of its keys and values

The gradient is that of the whole row. With `share` below 1, a coin decides for each chunk whether it is computed again,
and the gradients of those that are get the factor 1 / share: the mean over all coins is the whole gradient (SpaCO).
The original draws a fixed number of chunks without replacement, whose mean is another.

B rows, P positions, N positions of a chunk, D width, G key heads, K width of a head
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mmllm.llm.cache import CACHE

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""The loss of a chunk, from its hidden states (B N D) and its positions. The losses of all chunks add up."""


def chunked_loss(
    decoder: Any, arguments: dict[str, Any], loss_of: ChunkLoss, *, chunks: int, share: float = 1.0
) -> Tensor:
    """The loss of rows, computed chunk by chunk.

    Args:
        decoder: the LLM without its head, with a full attention in every layer and no dropout.
        arguments: its `inputs_embeds` (B P D), `attention_mask` (B P, or additive B 1 P P) and `position_ids` (B P).
        loss_of: the loss of a chunk.
        chunks: how many; positions are shared out equally.
        share: probability that a chunk is computed again; 1 for the exact gradient.
    """
    embeddings = arguments["inputs_embeds"]
    if not torch.is_grad_enabled():
        return _Chunked.forward(_Nothing(), embeddings, decoder, arguments, loss_of, chunks, share)
    if not embeddings.requires_grad:
        embeddings = embeddings.detach().requires_grad_()  # so that backward is called: the LLM's weights are trained
    return _Chunked.apply(embeddings, decoder, arguments, loss_of, chunks, share)


class _Nothing:
    """Stands for the context where nobody goes backward."""


def _slices(positions: int, chunks: int) -> list[slice]:
    """The positions of each chunk."""
    ends = [round(positions * number / chunks) for number in range(chunks + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends) if end > start]


def _read(decoder: Any, arguments: dict[str, Any], embeddings: Tensor, where: slice, cache: DynamicCache) -> Tensor:
    """The last hidden states (B N D) of a chunk behind what the cache holds."""
    mask = arguments["attention_mask"]
    mask = mask[:, :, where, : where.stop] if mask.ndim == 4 else mask[:, : where.stop]
    outputs = decoder(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=arguments["position_ids"][:, where],
        use_cache=True,
        **{CACHE: cache},
    )
    return outputs.last_hidden_state


class _Chunked(torch.autograd.Function):
    """A loss that is computed twice; weights get their gradients in its backward pass, as in checkpointing."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, decoder: Any, arguments: Any, loss_of: ChunkLoss, chunks: int, share: float
    ) -> Tensor:
        slices = _slices(embeddings.shape[1], chunks)
        cache = DynamicCache(config=decoder.config)
        total = embeddings.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            for where in slices:
                total = total + loss_of(_read(decoder, arguments, embeddings[:, where], where, cache), where)
        ctx.kept = [(layer.keys, layer.values) for layer in cache.layers]  # B G P K each
        ctx.embeddings, ctx.decoder, ctx.arguments = embeddings.detach(), decoder, arguments
        ctx.loss_of, ctx.slices, ctx.share = loss_of, slices, share
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        whole = torch.zeros_like(ctx.embeddings)
        asked = [tuple(torch.zeros_like(part) for part in layer) for layer in ctx.kept]  # of keys and of values
        for where in reversed(ctx.slices):
            if ctx.share < 1 and torch.rand(()) >= ctx.share:
                continue
            own, cache = ctx.embeddings[:, where].clone().requires_grad_(), DynamicCache()
            earlier = [
                tuple(part[:, :, : where.start].clone().requires_grad_() for part in layer) for layer in ctx.kept
            ]
            with torch.enable_grad():
                for number, leaves in enumerate(earlier):
                    cache.update(*leaves, number)
                goal = scale * ctx.loss_of(_read(ctx.decoder, ctx.arguments, own, where, cache), where)
                for layer, wanted in zip(cache.layers, asked, strict=True):
                    for part, gradient in zip((layer.keys, layer.values), wanted, strict=True):
                        goal = goal + (part[:, :, where] * gradient[:, :, where]).sum()
                goal = goal / ctx.share
            torch.autograd.backward(goal)
            whole[:, where] = own.grad
            for leaves, wanted in zip(earlier, asked, strict=True):
                for leaf, gradient in zip(leaves, wanted, strict=True):
                    if leaf.grad is not None:
                        gradient[:, :, : where.start] += leaf.grad
        return (whole, None, None, None, None, None)
