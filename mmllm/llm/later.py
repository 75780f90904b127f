"""A pass that adds keys to a cache: room is made for them, and they see the keys that are still there.

B rows, G key heads, K keys, N new positions
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.llm.attention import additive
from mmllm.llm.cache import RecordLayer
from mmllm.llm.kinds import PositionKind
from mmllm.llm.rotary import Rotary
from mmllm.llm.values import LlmPass, RoomView


def angles(kwargs: dict[str, Any], like: Tensor) -> Tensor | None:
    """int64, B N: as which positions the keys of a pass are rotated; None if a position has several numbers."""
    position = kwargs.get("position_ids")
    return position.expand_as(like) if isinstance(position, Tensor) and position.ndim == 2 else None


def later_pass(
    layer: int,
    first: RecordLayer,
    record: RecordLayer,
    current: LlmPass,
    hidden: Tensor,
    kwargs: dict[str, Any],
    rotary: Callable[[], Rotary],
) -> dict[str, Any]:
    """The arguments of a layer that change in a later pass: the mask, and the positions if they count in the cache.

    Keys differ between layers, so no mask fits all of them.

    Args:
        layer: its number.
        first: what the first layer has stored.
        record: what this layer has stored.
        current: the pass of the prompt.
        hidden: B N D.
        kwargs: of the layer; `new_valid` and `new_kind` (B N) say what the new positions are, if they are not all real
            and text.
        rotary: gives the decoder's rotary embedding.
    """
    rows, new = hidden.shape[:2]
    position = record.seen + torch.arange(new, device=hidden.device).expand(rows, new)
    valid, kind = kwargs.get("new_valid"), kwargs.get("new_kind")
    valid = torch.ones_like(position, dtype=torch.bool) if valid is None else valid
    if kind is None:
        kind = torch.full_like(position, PositionKind.ANSWER if new == 1 else PositionKind.QUESTION)
    _make_room(layer, record, current, valid)
    changed: dict[str, Any] = {}
    angle = angles(kwargs, position)
    if any(stage.turns_keys for stage in current.stages) and bool(record.evicted.any()):
        changed, angle = _inside_cache(record, valid, hidden, kwargs, rotary())
    number = record.read.unsqueeze(1) + (valid.cumsum(-1) - 1).clamp(min=0)
    record.announce(position, valid, new, number=number, kind=kind, angle=angle)
    if record.is_whole and first.is_whole:
        return changed  # the mask of transformers, made for the first layer, fits this layer too
    return {**changed, "attention_mask": additive(_visible(record, position, valid), hidden.dtype)}


def _make_room(layer: int, record: RecordLayer, current: LlmPass, valid: Tensor) -> None:
    """Lets stages remove keys before new ones (bool, B N) are added."""
    for number, stage in enumerate(current.stages):
        if not stage.evicts:
            continue
        view = RoomView(
            layer=layer,
            current=current,
            coming=valid.sum(-1),
            position=record.position,
            valid=record.valid,
            number=record.number,
            kind=record.kind,
            state=record.state_of(number),
            by_key=record.by_key_of(number),
        )
        if (kept := stage.make_room(view)) is not None:
            record.keep(kept)


def _inside_cache(
    record: RecordLayer, valid: Tensor, hidden: Tensor, kwargs: dict[str, Any], rotary: Rotary
) -> tuple[dict[str, Any], Tensor]:
    """Positions that count what is in the cache, for the rows that have lost keys: arguments, and positions B N."""
    record.restart_angles(rotary, record.evicted)
    counted = record.valid[:, 0].sum(-1, keepdim=True) + (valid.cumsum(-1) - 1).clamp(min=0)
    given = angles(kwargs, counted)
    angle = counted if given is None else torch.where(record.evicted.unsqueeze(1), counted, given)
    return {"position_ids": angle, "position_embeddings": rotary.embed(hidden, angle)}, angle


def _visible(record: RecordLayer, position: Tensor, valid: Tensor) -> Tensor:
    """bool, B G N K: each new position sees the real keys of this layer and earlier new ones."""
    new, heads = position.shape[1], record.position.shape[1]
    keys = torch.cat([record.position, position.unsqueeze(1).expand(-1, heads, -1)], dim=-1)  # B G K
    present = torch.cat([record.valid, valid.unsqueeze(1).expand(-1, heads, -1)], dim=-1)
    visible = present.unsqueeze(2) & (keys.unsqueeze(2) <= position[:, None, :, None])
    itself = torch.eye(new, dtype=torch.bool, device=position.device)
    # padding sees itself: no empty softmax row
    return visible | nn.functional.pad(itself, (keys.shape[-1] - new, 0))
