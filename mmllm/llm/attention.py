"""Attention with stages: which keys a query sees, how keys and values are changed, how much attention a key receives.

B rows, N new positions, K keys, H query heads, G key heads, R query rows of a block, D head width
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmllm.errors import InputError
from mmllm.llm.cache import RecordLayer
from mmllm.llm.packed_attention import PackedRows, packed_attention
from mmllm.llm.values import AttentionView, LlmPass

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
            `probe`, which gets queries and keys; then there is no attention. `packed` says where several questions
            of a row are; the mask is then not read.
    """
    if (probe := kwargs.pop("probe", None)) is not None:
        probe.query, probe.key = query, key
        return torch.zeros_like(query).transpose(1, 2), None
    current: LlmPass | None = kwargs.pop("llm_pass", None)
    record: RecordLayer | None = kwargs.pop("record", None)
    input_norm: Callable[[Tensor], Tensor] | None = kwargs.pop("input_norm", None)
    packed: PackedRows | None = kwargs.pop("packed", None)
    if current is None and packed is not None:
        return packed_attention(query, key, value, packed, kwargs["scaling"]), None
    if current is None:
        return own_attention(module)(module, query, key, value, attention_mask, **kwargs)
    view = _view(module, query, key, value, current, record, kwargs)
    view.input_norm = input_norm
    keys, values, mask = key, value, _for_heads(attention_mask, query.shape[1])
    # before attention: each stage may hide keys, and change keys, values and logits
    for number, stage in enumerate(current.stages):
        view.state = {} if record is None else record.state_of(number)
        if (selected := stage.select(view)) is not None:
            mask = _narrowed(mask, selected, view)
        if (reweighed := stage.reweigh(view)) is not None:
            keys, values = reweighed.keys, reweighed.values
            mask = mask if reweighed.bias is None else _dense(mask, view) + reweighed.bias.to(query.dtype)
    if mask is attention_mask and keys is key and values is value:  # nothing was changed
        out, _ = own_attention(module)(module, query, keys, values, mask, **kwargs)
    else:
        out, _ = sdpa_attention_forward(module, query, keys, values, mask, **kwargs)
    _after(view, keys, mask, record)
    return _attended(view, out, record), None


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
        view.state = {} if record is None else record.state_of(number)
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
        position, valid = kept.position.unsqueeze(1), kept.valid.unsqueeze(1)
        phase, query_position = "prompt", kept.position
    else:
        position, valid, query_position = record.position, record.valid, record.position[:, 0, -new:]
        phase = "prompt" if record.passes == 1 else "token" if new == 1 else "more prompt"
    return AttentionView(
        layer=layer,
        layers=int(module.config.num_hidden_layers),  # type: ignore[union-attr,arg-type]
        phase=phase,  # type: ignore[arg-type]
        current=current,
        query=query,
        keys=key,
        values=value,
        query_position=query_position,
        position=position,
        valid=valid,
        scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        state={},
    )


def _after(view: AttentionView, keys: Tensor, mask: Tensor | None, record: RecordLayer | None) -> None:
    """After attention: adds up what keys received from the rows that stages ask for; a stage may evict keys."""
    received: list[Mapping[str, Tensor]] = []
    for number, stage in enumerate(view.current.stages):
        view.state = {} if record is None else record.state_of(number)
        rows = stage.attention_rows(view) or {}
        view.received = receive(view.query, keys, mask, rows, view.scaling, per_head=stage.heads_apart) if rows else {}
        received.append(view.received)
        if record is not None and (kept := stage.evict(view)) is not None:
            record.keep(kept)
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
) -> dict[str, Tensor]:
    """Attention that each key receives, added up over query rows.

    Args:
        query: B H N D, rotated.
        key: B G K D, rotated.
        mask: B 1 N K or B H N K, additive or bool; None for a causal one.
        rows: name -> float, B N. Weight of each query row.
        scaling: of the logits.
        per_head: give each head separately.

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
            logits = logits.masked_fill(column > block[:, None] + (count - new), -torch.inf)
        elif mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask[:, :, block, :count], torch.finfo(torch.float32).min)
        else:
            logits = logits + mask[:, :, block, :count].float()
        weights = logits.softmax(-1)  # B H R K
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


def _for_heads(mask: Tensor | None, heads: int) -> Tensor | None:
    """A mask with an entry for each key head (B G N K), repeated for each query head."""
    if mask is None or mask.shape[1] in (1, heads):
        return mask
    return repeat(mask, "b g n k -> b (g r) n k", r=heads // mask.shape[1])
