"""Stages inside any Hugging Face decoder, with its own forward, cache and generate.

    layers 0..3 | prune | layers 4..13 | prune | layers 14..23 | prune | layers 24..31 | removed places filled with 0
    cache: all           fewer                  fewer still             fewest             tokens keep their positions

`install` registers hooks on a decoder, once. The hooks contain no method of their own. They act only in a forward pass
with an `LlmPass` as the keyword argument `llm_pass`. transformers hands that argument to every layer and attention
function, so passes of several threads stay separate. In generation, the cache keeps the pass for the next steps.

B rows, P positions of the whole row, K positions kept, N new positions
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface

from mmllm.errors import ConfigError, InputError
from mmllm.llm.ahead import Look, nothing_taken, probed, take_keys
from mmllm.llm.attention import STAGED, Probe, additive, staged_attention
from mmllm.llm.cache import CACHE, RecordLayer, adopt, pass_of
from mmllm.llm.later import angles, later_pass, rows_at, with_rejoined
from mmllm.llm.rotary import Rotary
from mmllm.llm.shared_prefix import SHARED, SharedPrefixLayer
from mmllm.llm.values import Kept, LlmPass, PruneView

_INSTALLING = threading.Lock()


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """What a layer's hook uses of the decoder around it."""

    layers: nn.ModuleList
    norm: Callable[[Tensor], Tensor]
    """The norm behind the last layer."""
    rotary: Callable[[], Rotary]
    """Gives the rotary embedding, or says why keys cannot be turned."""


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The layers of a Hugging Face decoder.

    Raises:
        ConfigError: if it has no list of layers, or stages cannot work with its attention.
    """
    layers = getattr(decoder, "layers", None)
    config: Any = getattr(decoder, "config", None)
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if others:
        raise ConfigError(f"stages work only in layers with full_attention; this LLM has {', '.join(sorted(others))}")
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ConfigError(f"{type(decoder).__name__} has no list of layers with attention: no stage can work inside it")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(f"stages need an LLM with eager or with sdpa attention, not {config._attn_implementation!r}")
    return layers


def install(decoder: nn.Module) -> None:
    """Prepares a decoder (without LM head, such as `LlamaModel`) for passes with stages. A second call does nothing.

    Raises:
        ConfigError: if stages cannot work inside it; see `decoder_layers`.
    """
    layers = decoder_layers(decoder)
    with _INSTALLING:
        first: Any = layers[0].self_attn
        if first.config._attn_implementation == STAGED:
            return
        AttentionInterface.register(STAGED, staged_attention)
        around = Around(layers=layers, norm=final_norm(decoder), rotary=functools.partial(Rotary.of, decoder))
        for number, layer in enumerate(layers):
            hook = functools.partial(_before_layer, number, around)
            layer.register_forward_pre_hook(hook, with_kwargs=True)
            attention: Any = layer.self_attn
            own = copy.copy(
                attention.config
            )  # a copy: the decoder's own configuration still decides how masks are made
            own.own_attn_implementation, own._attn_implementation = own._attn_implementation, STAGED
            attention.config = own
            take_keys(attention)
        layers[-1].register_forward_hook(_fill_up, with_kwargs=True)
        layers[-1].register_forward_hook(_drop_states, with_kwargs=True)


def takes_shared_prefix(decoder: nn.Module) -> bool:
    """Whether attentions of a decoder can read a prefix once for all rows: full ones, whose logits are plain products.

    Then it is prepared for it, as `install` does.
    """
    if getattr(decoder.config, "attn_logit_softcapping", None) is not None:
        return False
    try:
        install(decoder)
    except ConfigError:
        return False
    return True


def input_norm(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The norm before a layer's attention; None if the layer has none under the name that Hugging Face gives it.

    It is a function, not a module: accelerate would move a module among the arguments to another device.
    """
    norm = getattr(layer, "input_layernorm", None)
    return None if norm is None else norm.__call__


def final_norm(decoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm behind the last layer, under the name that Hugging Face gives it; nothing changes if there is none."""
    norm = getattr(decoder, "norm", None)
    return (lambda hidden: hidden) if norm is None else norm.__call__


def _before_layer(
    layer: int,
    around: Around,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a layer: in a pass with stages, removes positions and gives the layer inputs for those that remain."""
    nothing_taken()
    # step 1: the pass, given with a prompt, or kept by the cache in later steps
    cache: Any = kwargs.get(CACHE)
    current: LlmPass | None = kwargs.get("llm_pass")
    if current is not None and cache is not None and layer == 0 and pass_of(cache) is not current:
        adopt(cache, current, len(around.layers))
    if current is None:
        current = pass_of(cache)
    if current is None:
        return _with_shared(layer, cache, args, kwargs)
    if cache is None and (waiting := [stage for stage in current.stages if stage.needs_cache]):
        names = " and ".join(stage.registered_name or type(stage).__name__ for stage in waiting)
        raise ConfigError(
            f"{names} removes or chooses keys of the cache, so it needs a cache: it cannot work in training"
        )
    # step 2: hidden states, masks and positions that fit what this layer works on
    hidden = args[0] if args else kwargs["hidden_states"]
    record = None if cache is None else cache.layers[layer]
    if record is None or not record.seen:
        hidden, changed = _prompt(layer, around, module, current, record, hidden, kwargs)
    else:
        hidden = with_rejoined(layer, len(around.layers), record, current, hidden)
        changed = later_pass(layer, cache.layers[0], record, current, hidden, kwargs, around.rotary)
    kwargs = {**kwargs, **changed, "llm_pass": current, "record": record, "input_norm": input_norm(module)}
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})


def _with_shared(
    layer: int, cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of a layer with the cache's layer among them, if rows share keys in it; None for no change.

    Raises:
        ConfigError: if the attention of the layer before did not get that argument.
    """
    layers = getattr(cache, "layers", ())  # that of continuous batching has none
    own = layers[layer] if layer < len(layers) else None
    if not isinstance(own, SharedPrefixLayer):
        return None
    if layer and cache.layers[layer - 1].waits:
        raise ConfigError("this LLM does not pass keyword arguments to its attention: its rows cannot share a prefix")
    return args, {**kwargs, SHARED: own}


def _prompt(
    layer: int,
    around: Around,
    module: nn.Module,
    current: LlmPass,
    record: RecordLayer | None,
    hidden: Tensor,
    kwargs: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    """The hidden states that go into this layer, and the arguments that change with them: mask and positions."""
    if layer == 0 and hidden.shape[:2] != current.visual.shape:
        raise InputError(f"the pass is for rows of {tuple(current.visual.shape)}, not {tuple(hidden.shape[:2])}")
    hidden = _pruned(layer, around, module, current, record, hidden, kwargs)
    if layer == 0 and any(stage.rejoins for stage in current.stages):
        current.prompt_angles = kwargs["position_embeddings"]
    kept, whole = current.kept_at(layer), not any(start <= layer for start in current.kept)
    changed = {} if whole else _of_kept(kept, kwargs, hidden.dtype)
    if record is not None:
        record.announce(
            kept.position,
            kept.valid,
            current.visual.shape[1],
            whole=whole,
            real=current.valid.sum(-1),
            number=kept.of(current.number),
            kind=kept.of(current.kind),
            angle=angles({**kwargs, **changed}, kept.position),
        )
    return hidden, changed


def _of_kept(kept: Kept, kwargs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of a layer that works on kept positions: mask and positions."""
    rotated_as = kept.position if kept.rotated_as is None else kept.rotated_as
    changed: dict[str, Any] = {
        "attention_mask": _mask_of_prompt(kept, kwargs.get("attention_mask"), dtype),
        "position_embeddings": tuple(rows_at(part, rotated_as) for part in kwargs["position_embeddings"]),
    }
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = rows_at(kwargs["position_ids"], rotated_as)
    return changed


def _attention_ahead(
    look: Look, module: nn.Module, kept: Kept, hidden: Tensor, kwargs: dict[str, Any], rows: Tensor
) -> Tensor:
    """float32, B K: the attention that kept positions receive from weighted rows (B K) in a layer that has not run.

    Raises:
        ConfigError: if the layer has no norm before its attention under the usual name.
    """
    return look.received(_norm_of(module)(hidden), _of_kept(kept, kwargs, hidden.dtype), rows)


def _probe_of(
    around: Around, layer: int, kept: Kept, hidden: Tensor, kwargs: dict[str, Any], current: LlmPass, number: int
) -> Probe:
    """The queries and keys of layer `number`, if the kept positions went on to it as they stand.

    Raises:
        ConfigError: if it has no norm before its attention under the usual name.
    """
    inputs = _of_kept(kept, kwargs, hidden.dtype)
    beside = {}
    if layer == 0 and kept.position.shape == current.visual.shape:  # what else comes to the prompt comes here too
        beside = {"llm_pass": replace(current, stages=(), kept={}, received={}, notes=[], counts=None)}
    with torch.no_grad():
        for module in around.layers[layer:number]:
            hidden = module(hidden, **inputs, **beside, use_cache=False, **{CACHE: None})
    asked: Any = around.layers[number]
    return probed(asked.self_attn, _norm_of(asked)(hidden), inputs)


def _norm_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm before a layer's attention.

    Raises:
        ConfigError: if the layer has none under the usual name.
    """
    norm = input_norm(module)
    if norm is None:
        raise ConfigError(
            f"{type(module).__name__} has no input_layernorm: its attention cannot be looked at beforehand"
        )
    return norm


def _pruned(
    layer: int,
    around: Around,
    module: nn.Module,
    current: LlmPass,
    record: RecordLayer | None,
    hidden: Tensor,
    kwargs: dict[str, Any],
) -> Tensor:
    """Hidden states (B K D) without the positions that stages remove before this layer.

    Raises:
        ConfigError: if the attention of the layer before did not get the pass.
    """
    if layer and layer - 1 not in current.received:
        raise ConfigError("this LLM does not pass keyword arguments to its attention, so no stage can work inside it")
    kept = before = current.kept_at(layer - 1)
    received = current.received[layer - 1] if layer else [{} for _ in current.stages]
    look = Look(module.self_attn)
    for number, (stage, notes) in enumerate(zip(current.stages, current.notes, strict=True)):
        view = PruneView(
            layer=layer,
            layers=len(around.layers),
            current=current,
            before=kept,
            received=received[number],
            notes=notes,
            hidden=hidden,
            final_norm=around.norm,
            state={} if record is None else record.state_of(number),
            attention_ahead=functools.partial(_attention_ahead, look, module, kept, hidden, kwargs),
            probe_of=functools.partial(_probe_of, around, layer, kept, hidden, kwargs, current),
        )
        decision = stage.prune(view)
        if decision is None:
            continue
        if decision.keep is None:
            kept = replace(kept, weight=decision.weight)
            continue
        kept, slot = _without_removed(kept, decision.keep, decision.order)
        if decision.hidden is not None:
            hidden = decision.hidden
            look.forget()
        if decision.restart:
            kept = replace(kept, rotated_as=_without_gaps(kept, current))
            if decision.answer_follows:
                current.moved = (current.valid.sum(-1) - kept.valid.sum(-1)).unsqueeze(1)
        hidden = hidden.gather(1, slot.unsqueeze(-1).expand(*slot.shape, hidden.shape[-1]))
        look.narrow(slot)
        # the next stage sees only what remains
        received = [{name: _columns(value, slot) for name, value in own.items()} for own in received]
    if kept is not before:
        current.kept[layer] = kept
    look.hand_on()
    return hidden


def _without_removed(before: Kept, keep: Tensor, order: Tensor | None) -> tuple[Kept, Tensor]:
    """The positions that remain, and their slots (B K') among those before. Shorter rows are filled up."""
    keep = keep & before.valid
    order = torch.zeros_like(before.position) if order is None else order
    # a stable sort puts kept slots first, in their order; removed ones behind them fill up
    last = torch.iinfo(order.dtype).max
    slot = order.masked_fill(~keep, last).argsort(dim=-1, stable=True)[:, : int(keep.sum(-1).max())]
    weight, rotated_as = (
        None if values is None else values.gather(1, slot) for values in (before.weight, before.rotated_as)
    )
    position, valid = before.position.gather(1, slot), keep.gather(1, slot)
    return Kept(position=position, valid=valid, weight=weight, rotated_as=rotated_as), slot


def _without_gaps(kept: Kept, current: LlmPass) -> Tensor:
    """int64, B K: the first positions of each row for what is kept of the prompt; an answer has its own positions.

    So an answer is rotated alike with a cache, whose later passes know nothing of what was removed, and without.
    """
    first = current.valid.to(torch.uint8).argmax(-1, keepdim=True)
    prompt = kept.of(current.prompt) & kept.valid
    return torch.where(prompt, first + prompt.cumsum(-1) - 1, kept.position)


def _columns(values: Tensor, slot: Tensor) -> Tensor:
    """Values (B K or B H K) at slots B K' of their last axis."""
    return values.gather(-1, slot if values.ndim == 2 else slot.unsqueeze(1).expand(-1, values.shape[1], -1))


def _mask_of_prompt(kept: Kept, given: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Additive mask, B 1 K K: causal over kept positions, or cut from the mask of the whole row. Filling is hidden."""
    count, lowest = kept.position.shape[1], torch.finfo(dtype).min
    itself = torch.eye(count, dtype=torch.bool, device=kept.position.device)
    if given is None:
        mask = additive(torch.ones_like(itself).tril().expand(len(kept.position), 1, count, count), dtype)
    else:
        whole = given if given.dtype != torch.bool else additive(given, dtype)
        whole = whole.expand(len(kept.position), -1, -1, -1)
        position = _ascending(kept)
        lines = position[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[-1])
        columns = position[:, None, None, :].expand(-1, whole.shape[1], count, -1)
        mask = whole.gather(2, lines).gather(3, columns)
    mask = mask.masked_fill(~kept.valid[:, None, None, :] & ~itself, lowest)
    if kept.weight is not None:
        bias = rearrange((kept.weight + 1e-6).log(), "b k -> b 1 1 k").to(dtype)
        mask = (mask + bias.masked_fill(itself, 0.0)).clamp(min=lowest)
    return mask


def _ascending(kept: Kept) -> Tensor:
    """int64, B K: the positions in ascending order, for a mask: what is read later sees more, wherever it stood."""
    last = torch.iinfo(kept.position.dtype).max
    in_order = kept.position.masked_fill(~kept.valid, last).sort(-1).values
    number = (kept.valid.cumsum(-1) - 1).clamp(min=0)
    return torch.where(kept.valid, in_order.gather(-1, number), kept.position)


def _fill_up(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    """After the last layer: hidden states B P D of the whole row again, zero where a position was removed."""
    current: LlmPass | None = kwargs.get("llm_pass")
    record = kwargs.get("record")
    if current is not None and record is not None and record.passes > 1:
        return output[:, current.back :] if current.back else None
    if current is None or not current.kept:
        return None
    kept = current.kept[max(current.kept)]
    if torch.equal(kept.position, current.everything().position):
        return None
    output = output.masked_fill(~kept.valid.unsqueeze(-1), 0.0)
    whole = output.new_zeros(*current.visual.shape, output.shape[-1])
    return whole.scatter(1, kept.position.unsqueeze(-1).expand_as(output), output)


def _drop_states(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> None:
    """After the last layer: the cache, which keeps the pass, does not keep the tokens that stages have read."""
    current: LlmPass | None = kwargs.get("llm_pass")
    if current is not None and kwargs.get("record") is not None:
        current.cross_attention_states = None
