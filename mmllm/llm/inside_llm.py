"""Removing visual tokens between the layers of any Hugging Face decoder, with its own forward, cache and generate.

    layers 0..3 | prune | layers 4..13 | prune | layers 14..23 | prune | layers 24..31 | dropped places filled with 0
    cache: all           fewer                  fewer still             fewest             tokens keep their positions

`install` hangs two hooks on every layer, once. They do nothing unless a forward pass brings a `LlmPass` as the keyword
argument `inside_llm`, which transformers hands down to every layer and attention function; so passes of several
threads do not meet. While generating, the pass is found again at the cache, whose layers have different lengths.

B rows, P positions of the whole row, K positions left, H heads, G key heads, R query rows, D head width
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import ConfigError

RECORDED = "mmllm_recorded"
"""Name under which transformers knows the attention function that also looks at who is attended to."""
_BLOCK_ELEMENTS = 1 << 24
"""How many attention weights are held at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Received:
    """How much attention each position receives in one layer, added up over query rows and averaged over heads."""

    visual: Tensor
    """float32, B K. From the visual positions."""
    question: Tensor
    """float32, B K. From the question's positions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Alive:
    """The positions that a group of layers works on."""

    position: Tensor
    """int64, B K. Where in the whole row each one stands; ascending, but for what only fills up."""
    real: Tensor
    """bool, B K. False where an entry only fills up a row that has fewer left."""
    weight: Tensor | None = None
    """float32, B K. While thresholds are learned nothing is removed; attention to a position is multiplied by this."""

    def of(self, values: Tensor) -> Tensor:
        """Values B P of the positions that are left: B K."""
        return values.gather(1, self.position)

    def counting(self, rows: Tensor) -> Tensor:
        """float32, B K: how much each position counts among some (bool, B P): 0 at all others and at filling."""
        weight = 1.0 if self.weight is None else self.weight.detach()
        return (self.of(rows) & self.real) * weight


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """What becomes of the positions that went through the layer before: one of the two."""

    keep: Tensor | None = None
    """bool, B K. Which go on."""
    weight: Tensor | None = None
    """float32, B K. How much attention to each still counts, with gradients; all go on."""


Decide = Callable[["LlmPass", int, Alive, Received], Verdict]


@dataclass(kw_only=True, eq=False)
class LlmPass:
    """One forward pass: which positions are visual, and what becomes of them. Not to be used twice."""

    visual: Tensor
    """bool, B P."""
    question: Tensor
    """bool, B P. Text after the visual tokens that may decide about them; answers in training are not part of it."""
    place: Tensor
    """int64, B P. Raster position of a visual token on its frame's grid; anything elsewhere."""
    grid: tuple[int, int] | None
    """Rows and columns of the grid; None where tokens have no place, and count by their number in the row."""
    frame: Tensor
    """int64, B P. The frame a visual token shows."""
    real: Tensor
    """bool, B P. False at padding."""
    alive: dict[int, Alive] = field(default_factory=dict)
    """By the first layer that works on it."""
    received: dict[int, Received] = field(default_factory=dict)
    """By layer."""
    decided: dict[int, Any] = field(default_factory=dict)
    """What the reducer notes at each of its layers, for its losses and for display."""
    unusable: bool = False
    """Set in training when numbers are not finite: nothing is to be learned from this pass."""

    def alive_at(self, layer: int) -> Alive | None:
        """What a layer works on; None for everything."""
        starts = [start for start in self.alive if start <= layer]
        return self.alive[max(starts)] if starts else None

    def everything(self) -> Alive:
        """All positions of the row."""
        rows, count = self.visual.shape
        return Alive(position=torch.arange(count, device=self.visual.device).expand(rows, count), real=self.real)


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The layers of a Hugging Face decoder.

    Raises:
        ConfigError: if it keeps them elsewhere, or tokens cannot be removed between them.
    """
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ConfigError(
            f"{type(decoder).__name__} has no list of layers with attention: tokens cannot be removed inside"
        )
    config: Any = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(
            f"tokens cannot be removed inside an LLM with {', '.join(sorted(kinds - {'full_attention'}))}"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(f"tokens are removed inside an LLM with sdpa attention, not {config._attn_implementation!r}")
    return layers


def install(decoder: nn.Module, cuts: Mapping[int, Decide]) -> None:
    """Lets positions be removed before certain layers of a decoder.

    Args:
        decoder: a decoder without its LM head, such as `LlamaModel`.
        cuts: number of a layer (from 1) -> what decides which positions go on, from the attention in the layer before.

    Raises:
        ConfigError: if the decoder is not of a kind this works with, or a layer does not exist.
    """
    from transformers import AttentionInterface

    layers = decoder_layers(decoder)
    for layer in cuts:
        if not 1 <= layer < len(layers):
            raise ConfigError(f"layer {layer}: tokens can be removed before layers 1 to {len(layers) - 1}")
        attention: Any = layers[layer - 1].self_attn
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = RECORDED
    AttentionInterface.register(RECORDED, recorded_attention)
    for number, module in enumerate(layers):
        if number >= min(cuts):
            module.register_forward_pre_hook(functools.partial(_before, number, cuts.get(number)), with_kwargs=True)
    layers[-1].register_forward_hook(_fill_up, with_kwargs=True)


def recorded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """sdpa attention that notes how much each position receives, where a pass asks for it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    current: LlmPass | None = kwargs.pop("inside_llm", None)
    if current is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        alive = current.alive_at(layer) or current.everything()
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        visual, question = (
            received(query, key, attention_mask, alive.counting(rows), scaling)
            for rows in (current.visual, current.question)
        )
        current.received[layer] = Received(visual=visual, question=question)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@torch.no_grad()
def received(query: Tensor, key: Tensor, mask: Tensor | None, rows: Tensor, scaling: float) -> Tensor:
    """Attention that each key receives from query rows, summed over them, mean over heads.

    Args:
        query: B H K D, rotated.
        key: B G K D, rotated.
        mask: B 1 K K, additive or bool; None for a causal one.
        rows: float, B K. How much each row counts.
        scaling: of the logits.

    Returns:
        float32, B K.
    """
    batch, heads, count, _ = query.shape
    key = key.float().repeat_interleave(heads // key.shape[1], dim=1)
    total = key.new_zeros(batch, count)
    step = max(1, _BLOCK_ELEMENTS // max(1, batch * heads * count))
    later = torch.arange(count, device=query.device)
    for start in range(0, count, step):
        stop = min(start + step, count)
        if not bool(rows[:, start:stop].any()):
            continue
        logits = torch.einsum("bhqd,bhkd->bhqk", query[:, :, start:stop].float(), key) * scaling
        if mask is None:
            logits = logits.masked_fill(later > later[start:stop, None], -torch.inf)
        elif mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask[:, :, start:stop, :count], torch.finfo(torch.float32).min)
        else:
            logits = logits + mask[:, :, start:stop, :count].float()
        weights = logits.softmax(-1).mean(1)  # B R K
        total += (weights * rows[:, start:stop, None]).sum(1)
    return total


def _before(
    layer: int, decide: Decide | None, module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict] | None:
    """Ahead of a layer: decides who goes on if this is a cut, then gives the layer what fits those."""
    cache = kwargs.get("past_key_values")
    current: LlmPass | None = kwargs.get("inside_llm")
    if current is None:
        current = getattr(cache, "inside_llm", None)
        return None if current is None else _next_token(layer, current, args, kwargs)
    hidden = args[0] if args else kwargs["hidden_states"]
    if decide is not None:
        before = current.alive_at(layer - 1) or current.everything()
        verdict = decide(current, layer, before, current.received[layer - 1])
        if verdict.keep is not None:
            left, slot = _left(before, verdict.keep)
            hidden = hidden.gather(1, slot.unsqueeze(-1).expand(*slot.shape, hidden.shape[-1]))
        else:
            left = replace(before, weight=verdict.weight)
        current.alive[layer] = left
        if cache is not None:
            cache.inside_llm = current
    alive = current.alive_at(layer)
    assert alive is not None
    changed = {
        "attention_mask": _mask_for(alive, kwargs.get("attention_mask"), hidden.dtype),
        "position_embeddings": tuple(_rows(part, alive.position) for part in kwargs["position_embeddings"]),
    }
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = _rows(kwargs["position_ids"], alive.position)
    return (
        ((hidden, *args[1:]), {**kwargs, **changed}) if args else ((), {**kwargs, **changed, "hidden_states": hidden})
    )


def _left(before: Alive, keep: Tensor) -> tuple[Alive, Tensor]:
    """The positions that go on, rows with fewer filled up, and their slots (B K') among those before."""
    keep = keep & before.real
    slot = (~keep).to(torch.uint8).argsort(dim=-1, stable=True)[:, : int(keep.sum(-1).max())]
    return Alive(position=before.position.gather(1, slot), real=keep.gather(1, slot)), slot


def _rows(values: Tensor, position: Tensor) -> Tensor:
    """Values (B or 1) P ... at positions B K: B K ..."""
    values = values.expand(len(position), *values.shape[1:])
    index = position.view(*position.shape, *[1] * (values.ndim - 2)).expand(*position.shape, *values.shape[2:])
    return values.gather(1, index)


def _mask_for(alive: Alive, given: Tensor | None, dtype: torch.dtype) -> Tensor:
    """B 1 K K, additive: causal over what is left, or the given mask of the whole row; filling is seen by nobody."""
    count = alive.position.shape[1]
    lowest = torch.finfo(dtype).min
    itself = torch.eye(count, dtype=torch.bool, device=alive.position.device)
    if given is None:
        seen = torch.ones_like(itself).tril().expand(len(alive.position), 1, count, count)
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest)
    else:
        if given.dtype == torch.bool:
            given = torch.zeros(given.shape, dtype=dtype, device=given.device).masked_fill(~given, lowest)
        whole = given.expand(len(alive.position), -1, -1, -1)
        lines = alive.position[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[-1])
        mask = whole.gather(2, lines)
        mask = mask.gather(3, alive.position[:, None, None, :].expand(-1, whole.shape[1], count, -1))
    mask = mask.masked_fill(~alive.real[:, None, None, :] & ~itself, lowest)
    if alive.weight is not None:
        bias = rearrange((alive.weight + 1e-6).log(), "b k -> b 1 1 k").to(dtype)
        mask = (mask + bias.masked_fill(itself, 0.0)).clamp(min=lowest)
    return mask


def _next_token(layer: int, current: LlmPass, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """While generating: the new positions see what is left in this layer's cache, and each other in order."""
    alive = current.alive_at(layer)
    assert alive is not None
    hidden = args[0] if args else kwargs["hidden_states"]
    new, past = hidden.shape[1], kwargs["past_key_values"].layers[layer].get_seq_length()
    rows = len(hidden)
    old = alive.real.repeat_interleave(rows // len(alive.real), dim=0)
    seen = torch.cat([old, old.new_ones(rows, past + new - old.shape[1])], dim=1)
    seen = seen[:, None, None, :].expand(rows, 1, new, past + new)
    seen = seen & torch.ones(new, past + new, dtype=torch.bool, device=seen.device).tril(past)
    mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=seen.device)
    return args, {**kwargs, "attention_mask": mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)}


def _fill_up(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
    """Behind the last layer: hidden states back at the places of the whole row, zero where a position was dropped."""
    current: LlmPass | None = kwargs.get("inside_llm")
    alive = None if current is None or not current.alive else current.alive[max(current.alive)]
    if current is None or alive is None or torch.equal(alive.position, current.everything().position):
        return None
    output = output.masked_fill(~alive.real.unsqueeze(-1), 0.0)
    whole = output.new_zeros(*current.visual.shape, output.shape[-1])
    return whole.scatter(1, alive.position.unsqueeze(-1).expand_as(output), output)
