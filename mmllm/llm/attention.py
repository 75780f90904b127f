"""Attention with stages: which keys a query sees, how keys and values are changed, how much attention a key receives.

B rows, N new positions, K keys, H query heads, G key heads, R query rows of a block, D head width
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmllm.errors import InputError
from mmllm.llm.cache import RecordLayer
from mmllm.llm.packed_attention import PackedRows, packed_attention
from mmllm.llm.ring import RING, RingRow
from mmllm.llm.ring_attention import ring_attention
from mmllm.llm.shared_prefix import SHARED, SharedPrefixLayer
from mmllm.llm.values import AttentionView, GatheredKeys, KeptKeys, LlmPass

STAGED = "mmllm_staged"
"""Name under which transformers knows the attention function that calls stages."""
_BLOCK_ELEMENTS = 1 << 24
"""How many attention weights are in memory at a time."""

Attention = Callable[..., tuple[Tensor, Tensor | None]]


def staged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention output: of the LLM's own function, or, in a pass with stages, of sdpa as the stages change it.

    Args:
        module: the attention module.
        query: B H N D, rotated.
        key, value: B G K D; all keys of the cache, if there is one.
        attention_mask: B 1 N K, additive or bool.
        kwargs: of transformers' attention functions; the harness adds `llm_pass`, `record` and `input_norm`, or
            `probe`, which gets queries and keys; then there is no attention; or the layer of a cache whose rows share
            the keys of their beginning. `packed` says where several questions of a row are; the mask is then not read,
            nor where rows are shared out over a ring of processes.
    """
    if (probe := kwargs.pop("probe", None)) is not None:
        probe.query, probe.key = query, key
        return query.transpose(1, 2), None  # of its shape; nobody reads it
    current: LlmPass | None = kwargs.pop("llm_pass", None)
    record: RecordLayer | None = kwargs.pop("record", None)
    input_norm: Callable[[Tensor], Tensor] | None = kwargs.pop("input_norm", None)
    if current is None:
        return _without_stages(module, query, key, value, attention_mask, kwargs)
    for name in (SHARED, RING, "packed"):
        kwargs.pop(name, None)
    masks = kwargs.pop("bank_masks", None)
    if record is None or not record.banks:
        view = _view(module, query, key, value, current, record, kwargs)
        view.input_norm = input_norm
        out, seen = _staged(module, view, attention_mask, record, kwargs)
        _note(view, seen)
        return out, None
    # heads that hold other keys are banks: each has an attention of its own
    out, group = query.new_empty(query.transpose(1, 2).shape), query.shape[1] // key.shape[1]
    seen = torch.empty(query.shape[:2], device=query.device)
    for bank, mask in zip(record.banks, masks, strict=True):
        heads = [head * group + number for head in bank.heads for number in range(group)]
        stored = bank.record
        view = _view(module, query[:, heads], stored.keys, stored.values, current, stored, kwargs)
        view.input_norm, view.heads = input_norm, bank.heads
        out[:, :, heads], seen[:, heads] = _staged(module, view, mask, stored, kwargs)
    _note(view, seen)
    return out, None


def _without_stages(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The attention's output B N H D: of the LLM's own function, or of one that knows how its rows are made."""
    shared: SharedPrefixLayer | None = kwargs.pop(SHARED, None)
    ring_row: RingRow | None = kwargs.pop(RING, None)
    packed: PackedRows | None = kwargs.pop("packed", None)
    if shared is not None:
        return shared.attention(query, key, value, attention_mask, kwargs.get("scaling")), None
    if ring_row is not None:
        ring_row.layers.append(int(module.layer_idx))  # type: ignore[arg-type]
        return ring_attention(query, key, value, ring_row, kwargs), None
    if packed is not None:
        return packed_attention(query, key, value, packed, kwargs["scaling"]), None
    return own_attention(module)(module, query, key, value, attention_mask, **kwargs)


def _staged(
    module: nn.Module,
    view: AttentionView,
    attention_mask: Tensor | None,
    record: RecordLayer | None,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """The attention's output (B N H D) as the stages change it, and how many keys the last query sees (float, B H)."""
    current, query = view.current, view.query
    keys, values, mask = view.keys, view.values, _for_heads(attention_mask, query.shape[1])
    gathered: GatheredKeys | None = None
    # before attention: each stage may hide keys, and change keys, values and logits
    for number, stage in enumerate(current.stages):
        _point_at(view, number, record)
        selected = stage.select(view)
        if isinstance(selected, GatheredKeys):
            gathered = selected
        elif selected is not None:
            mask = _narrowed(mask, selected, view)
        if (reweighed := stage.reweigh(view)) is not None:
            keys, values = reweighed.keys, reweighed.values
            mask = mask if reweighed.bias is None else _dense(mask, view) + reweighed.bias.to(query.dtype)
    if gathered is not None:
        keys, values, mask = _only(gathered, keys, values, mask, view)
    if mask is attention_mask and keys is view.keys and values is view.values:  # nothing was changed
        out, _ = own_attention(module)(module, query, keys, values, mask, **kwargs)
    elif keys.shape[1] != view.keys.shape[1]:  # each query head has chosen keys of its own
        out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=view.scaling).transpose(1, 2)
    else:
        out, _ = sdpa_attention_forward(module, query, keys, values, mask, **kwargs)
    seen = _seen(view, mask, keys.shape[2])
    _after(view, keys, mask, record, gathered)
    return _attended(view, out, record), seen


@dataclass
class Probe:
    """The queries and keys of an attention, which a forward pass with the keyword `probe` fills in."""

    query: Tensor = None  # type: ignore[assignment]
    """B H N D, rotated."""
    key: Tensor = None  # type: ignore[assignment]
    """B G K D, rotated."""


def _attended(view: AttentionView, out: Tensor, record: RecordLayer | None) -> Tensor:
    """The attention's output B N H D after each stage has added to it.

    Raises:
        InputError: if a stage gives another shape.
    """
    for number, stage in enumerate(view.current.stages):
        _point_at(view, number, record)
        view.context = out
        if (changed := stage.attended(view)) is not None:
            if changed.shape != out.shape:
                raise InputError(f"an attention's output must stay {tuple(out.shape)}, not {tuple(changed.shape)}")
            out = changed
    return out


def _view(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    current: LlmPass,
    record: RecordLayer | None,
    kwargs: Mapping[str, Any],
) -> AttentionView:
    """What stages see of this attention; `state` and `received` are set for each stage later."""
    layer, new = int(module.layer_idx), query.shape[2]  # type: ignore[arg-type]
    if record is None:  # no cache: every pass reads the whole row
        kept = current.kept_at(layer)
        marks = {"position": kept.position, "valid": kept.valid}
        marks |= {"number": kept.of(current.number), "kind": kept.of(current.kind), "angle": kept.position}
        marks = {name: value.unsqueeze(1) for name, value in marks.items()}
        phase, query_position = "prompt", kept.position
    else:
        marks = {name: getattr(record, name) for name in ("position", "valid", "number", "kind", "angle")}
        query_position = record.position[:, 0, -new:]
        phase = "prompt" if record.passes == 1 else "token" if new - current.back == 1 else "more prompt"
    return AttentionView(
        layer=layer,
        layers=int(module.config.num_hidden_layers),  # type: ignore[union-attr,arg-type]
        phase=phase,  # type: ignore[arg-type]
        current=current,
        query=query,
        keys=key,
        values=value,
        query_position=query_position,
        position=marks["position"],
        valid=marks["valid"],
        number=marks["number"],
        kind=marks["kind"],
        angle=marks["angle"],
        scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        state={},
    )


def _point_at(view: AttentionView, stage: int, record: RecordLayer | None) -> None:
    """Gives a stage what it has noted in this layer."""
    view.state, view.by_key = ({}, {}) if record is None else (record.state_of(stage), record.by_key_of(stage))


def _after(
    view: AttentionView,
    keys: Tensor,
    mask: Tensor | None,
    record: RecordLayer | None,
    gathered: GatheredKeys | None,
) -> None:
    """After attention: adds up what keys received from the rows that stages ask for; a stage may evict keys."""
    received: list[Mapping[str, Tensor]] = []
    counts = view.current.counts
    if counts is not None:
        counts.note_bytes()
    for number, stage in enumerate(view.current.stages):
        _point_at(view, number, record)
        rows = stage.attention_rows(view) or {}
        view.received = {}
        if rows:
            shaped = functools.partial(stage.shaped_logits, view)
            apart = stage.heads_apart or gathered is not None
            view.received = receive(view.query, keys, mask, rows, view.scaling, per_head=apart, shaped=shaped)
        if gathered is not None:
            view.received = _of_all_keys(view, gathered, heads_apart=stage.heads_apart)
        received.append(view.received)
        if record is not None and (kept := stage.evict(view)) is not None:
            if isinstance(kept, KeptKeys):
                record.keep(kept)
            else:
                record.split(kept)
    if view.phase == "prompt":
        view.current.received[view.layer] = received


@torch.no_grad()
def receive(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rows: Mapping[str, Tensor],
    scaling: float,
    *,
    per_head: bool = False,
    shaped: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Attention that each key receives, added up over query rows.

    Args:
        query: B H N D, rotated.
        key: B G K D, rotated.
        mask: B 1 N K or B H N K, additive or bool; None for a causal one.
        rows: name -> float, B N. Weight of each query row.
        scaling: of the logits.
        per_head: give each head separately.
        shaped: of logits (float32, B H R K) and their query rows (int64, R): the logits that count in their place,
            where a key is seen.

    Returns:
        Name -> float32, B K, mean over heads; with `per_head`, B H K.
    """
    batch, heads, new, _ = query.shape
    count = key.shape[2]
    key = repeat(key.float(), "b g k d -> b (g r) k d", r=heads // key.shape[1])
    shape = (batch, heads, count) if per_head else (batch, count)
    totals = {name: key.new_zeros(shape) for name in rows}
    has_weight = torch.stack([(weight != 0).any(0) for weight in rows.values()]).any(0)  # N
    row_indices = has_weight.nonzero().squeeze(1)  # the attention of other rows is not computed
    step = max(1, _BLOCK_ELEMENTS // max(1, batch * heads * count))
    column = torch.arange(count, device=query.device)
    for block in row_indices.split(step):
        logits = torch.einsum("bhrd,bhkd->bhrk", query[:, :, block].float(), key) * scaling
        if mask is None:
            hidden = column > block[:, None] + (count - new)
        elif mask.dtype == torch.bool:
            hidden = ~mask[:, :, block, :count]
        else:
            bias = mask[:, :, block, :count]
            hidden = bias <= torch.finfo(mask.dtype).min / 2
            logits = logits + bias.float().masked_fill(hidden, 0.0)
        logits = logits if shaped is None else shaped(logits, block)
        # hidden last: a shape such as a temperature must neither show a key nor leave a row, as of padding, without one
        weights = logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)  # B H R K
        for name, weight in rows.items():
            axes = "bhrk,br->bhk" if per_head else "bhrk,br->bk"
            totals[name] += torch.einsum(axes, weights, weight[:, block].float()) / (1 if per_head else heads)
    return totals


def own_attention(module: nn.Module) -> Attention:
    """The attention that a module had before the harness was installed."""
    name = module.config.own_attn_implementation  # type: ignore[union-attr]
    if name == "eager":  # each family has its own function, in the file of its attention class
        return sys.modules[type(module).__module__].eager_attention_forward
    return AttentionInterface().get_interface(name, sdpa_attention_forward)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask in additive form: 0 where it is True, the lowest number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _dense(mask: Tensor | None, view: AttentionView) -> Tensor:
    """The mask in additive form, B (1 or H) N K; a causal one for None."""
    dtype, new, count = view.query.dtype, view.query.shape[2], view.keys.shape[2]
    if mask is None:
        mask = torch.ones(new, count, dtype=torch.bool, device=view.query.device).tril(count - new)[None, None]
    return additive(mask, dtype) if mask.dtype == torch.bool else mask


def _narrowed(mask: Tensor | None, selected: Tensor, view: AttentionView) -> Tensor:
    """The mask, narrowed to the keys that a stage selects (bool, B, G or H, N, K). A query always sees itself.

    Raises:
        InputError: if the selection has another shape.
    """
    heads, new, count = view.query.shape[1], view.query.shape[2], view.keys.shape[2]
    if selected.ndim != 4 or selected.shape[2:] != (new, count) or heads % selected.shape[1]:
        raise InputError(f"a selection must be (B, heads, {new}, {count}), not {tuple(selected.shape)}")
    selected = repeat(selected, "b g n k -> b (g r) n k", r=heads // selected.shape[1])
    itself = torch.eye(new, dtype=torch.bool, device=selected.device)
    selected = selected | torch.nn.functional.pad(itself, (count - new, 0))
    return _dense(mask, view).masked_fill(~selected, torch.finfo(view.query.dtype).min)


def _only(
    gathered: GatheredKeys, keys: Tensor, values: Tensor, mask: Tensor | None, view: AttentionView
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys and values (B (G or H) K' D) at the slots that a stage has chosen, and their mask.

    Raises:
        InputError: if the slots have another shape.
    """
    batch, heads, new, _ = view.query.shape
    key_heads, index = keys.shape[1], gathered.index
    if index.ndim != 3 or index.shape[0] != batch or index.shape[1] not in (1, key_heads, heads):
        raise InputError(f"chosen slots must be (B G K) = ({batch}, {key_heads}, ...), not {tuple(index.shape)}")
    index = index if index.shape[1] == heads else index.expand(-1, key_heads, -1)
    group = heads // index.shape[1]
    slots_of_heads = repeat(index, "b g k -> b (g r) n k", r=group, n=new)
    if mask is not None or new > 1 or gathered.valid is not None:
        mask = _dense(mask, view).expand(batch, heads, new, -1).gather(3, slots_of_heads)
    if gathered.valid is not None and mask is not None:
        hidden = ~gathered.valid.expand(-1, index.shape[1], -1)
        hidden = repeat(hidden, "b g k -> b (g r) 1 k", r=group)
        mask = mask.masked_fill(hidden, torch.finfo(view.query.dtype).min)
    slots = repeat(index, "b (g r) k -> b g r k d", g=key_heads, d=keys.shape[-1])
    # each key head as often as there are choices for it, without a copy
    stored = (part.unsqueeze(2).expand(-1, -1, slots.shape[2], -1, -1) for part in (keys, values))
    keys, values = (part.gather(3, slots).flatten(1, 2) for part in stored)
    return keys, values, mask


def _of_all_keys(view: AttentionView, gathered: GatheredKeys, *, heads_apart: bool) -> dict[str, Tensor]:
    """What the chosen keys (B H K') received, at their slots of all keys: B H K, or B K; 0 for the others."""
    batch, heads = view.query.shape[:2]
    index = repeat(gathered.index, "b g k -> b (g r) k", r=heads // gathered.index.shape[1])
    whole = {
        name: value.new_zeros(batch, heads, view.keys.shape[2]).scatter_add(2, index, value)
        for name, value in view.received.items()
    }
    return whole if heads_apart else {name: value.mean(1) for name, value in whole.items()}


def _seen(view: AttentionView, mask: Tensor | None, keys: int) -> Tensor:
    """float, B H: how many of so many keys the last query sees."""
    batch, heads = view.query.shape[:2]
    if mask is None:
        return torch.full((batch, heads), float(keys), device=view.query.device)
    last = mask[:, :, -1, :keys]
    visible = last if mask.dtype == torch.bool else last > torch.finfo(mask.dtype).min / 2
    return visible.sum(-1).float().expand(batch, heads)


def _note(view: AttentionView, seen: Tensor) -> None:
    """Notes in the counters of the pass how many keys the last query saw (float, B H)."""
    if view.current.counts is not None:
        new = view.valid[:, 0, -view.query.shape[2] :]
        view.current.counts.note_pass(
            view.layer, new[:, :-1] if view.phase == "token" else new, seen, view.valid[:, 0].sum(-1)
        )


def _for_heads(mask: Tensor | None, heads: int) -> Tensor | None:
    """A mask with an entry for each key head (B G N K), repeated for each query head."""
    if mask is None or mask.shape[1] in (1, heads):
        return mask
    return repeat(mask, "b g n k -> b (g r) n k", r=heads // mask.shape[1])
