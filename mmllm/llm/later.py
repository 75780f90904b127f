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
from mmllm.llm.values import LlmPass, RejoinView, RoomView


def angles(kwargs: dict[str, Any], like: Tensor) -> Tensor | None:
    """int64, B N: as which positions the keys of a pass are rotated; None if a position has several numbers."""
    position = kwargs.get("position_ids")
    return position.expand_as(like) if isinstance(position, Tensor) and position.ndim == 2 else None


def rows_at(values: Tensor, position: Tensor) -> Tensor:
    """Values (B or 1) P ... at positions B K: B K ..."""
    values = values.expand(len(position), *values.shape[1:])
    index = position.view(*position.shape, *[1] * (values.ndim - 2)).expand(*position.shape, *values.shape[2:])
    return values.gather(1, index)


def with_rejoined(layer: int, layers: int, record: RecordLayer, current: LlmPass, hidden: Tensor) -> Tensor:
    """States B (R + N) D that go into a layer: of positions of the prompt that come back, and of new ones.

    Args:
        layer: its number.
        layers: how many the LLM has.
        record: what this layer has stored.
        current: the pass of the prompt, which learns who comes back.
        hidden: B (M + N) D, as they come out of the layer before.
    """
    if not any(stage.rejoins for stage in current.stages):
        return hidden
    if layer == 0:
        current.rejoined = None
    for number, stage in enumerate(current.stages):
        back, own = hidden[:, : current.back], hidden[:, current.back :]
        nothing = torch.empty(len(hidden), 0, dtype=torch.long, device=hidden.device)
        position, valid = (nothing, nothing.bool()) if current.rejoined is None else current.rejoined
        view = RejoinView(
            layer=layer, layers=layers, current=current, hidden=back, position=position, valid=valid,
            state=record.state_of(number),
        )  # fmt: skip
        if stage.rejoins and (rejoined := stage.rejoin(view)) is not None:
            current.rejoined = rejoined.position, rejoined.valid
            hidden = torch.cat([rejoined.hidden, own], dim=1)
    return hidden


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
        hidden: B (R + N) D, with R positions of the prompt that have come back.
        kwargs: of the layer; `new_valid` and `new_kind` (B N) say what the new positions are, if they are not all real
            and text.
        rotary: gives the decoder's rotary embedding.
    """
    rows, new = len(hidden), hidden.shape[1] - current.back
    position = record.seen + torch.arange(new, device=hidden.device).expand(rows, new)
    valid, kind = kwargs.get("new_valid"), kwargs.get("new_kind")
    valid = torch.ones_like(position, dtype=torch.bool) if valid is None else valid
    if kind is None:
        kind = torch.full_like(position, PositionKind.ANSWER if new == 1 else PositionKind.QUESTION)
    _make_room(layer, record, current, valid)
    changed: dict[str, Any] = {}
    angle = angles(kwargs, position)
    if current.moved is not None and angle is not None:
        angle = angle - current.moved
        changed = {"position_ids": angle, "position_embeddings": rotary().embed(hidden, angle)}
    if any(stage.turns_keys for stage in current.stages) and bool(record.evicted.any()):
        changed, angle = _inside_cache(record, valid, hidden, kwargs, rotary())
    number = record.read.unsqueeze(1) + (valid.cumsum(-1) - 1).clamp(min=0)
    marks: dict[str, Any] = {"position": position, "valid": valid, "number": number, "kind": kind, "angle": angle}
    if current.rejoined is not None:
        marks = {name: _with_prompt(name, value, current) for name, value in marks.items()}
        changed |= {"position_embeddings": _with_prompt_angles(current, kwargs | changed)}
    record.announce(read=new, whole=not current.back, real=valid.sum(-1), **marks)
    if record.is_whole and first.is_whole:
        return changed  # the mask of transformers, made for the first layer, fits this layer too
    masks = [additive(_visible(part, marks["position"], marks["valid"]), hidden.dtype) for part in record.parts]
    return {**changed, "attention_mask": None if record.banks else masks[0], "bank_masks": masks}


def _with_prompt(name: str, own: Tensor | None, current: LlmPass) -> Tensor | None:
    """What is noted of each position of a pass (B N), behind that of the prompt's positions that have come back."""
    assert current.rejoined is not None
    position, valid = current.rejoined
    notes = {"position": position, "valid": valid}
    back = notes[name] if name in notes else (current.kind if name == "kind" else current.number).gather(1, position)
    return None if own is None else torch.cat([back, own], dim=1)


def _with_prompt_angles(current: LlmPass, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Cosines and sines of a pass, behind those of the prompt's positions that have come back."""
    assert current.rejoined is not None
    assert current.prompt_angles is not None
    position = current.rejoined[0]
    pairs = zip(current.prompt_angles, kwargs["position_embeddings"], strict=True)
    return tuple(
        torch.cat([rows_at(prompt, position), own.expand(len(position), -1, -1)], dim=1) for prompt, own in pairs
    )


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
