"""Stages inside the LLM of a hosted model: the pass travels on the cache, because `generate` refuses new arguments.

    generate(past_key_values=cache with the pass) -> ... -> decoder: first forward takes the pass off the cache
    -> layers get it as `llm_pass`, as in our own models (`mmllm.llm.harness`)

Some families add tower features behind the first layers ("deepstack"), at places of the whole prompt. The decoder's
hook takes them out of the arguments, and a hook of each layer adds them at the positions that are still there.

B rows, P positions of the prompt, K positions kept, R rows of deepstack features, C LLM width
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from mmllm.errors import ConfigError
from mmllm.interfaces import LlmStage
from mmllm.llm.cache import CACHE, pass_of
from mmllm.llm.harness import decoder_layers, install
from mmllm.llm.rotary import Rotary
from mmllm.llm.values import LlmPass
from mmllm.tokens import IGNORED

_INSTALLING = threading.Lock()
_CARRIES = "mmllm_carries_passes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Deepstack:
    """Tower features that are added behind the first layers, one list entry a layer."""

    features: Sequence[Tensor]
    """R C each, in the order of the visual positions."""
    row: Tensor
    """int64, B P. Which of the R rows belongs to a position; -1 for text."""

    def at(self, layer: int, position: Tensor, valid: Tensor, like: Tensor) -> Tensor:
        """B K C: what is added behind `layer` at positions B K; 0 at text and filling."""
        rows = self.row.gather(1, position).masked_fill(~valid, -1)
        features = self.features[layer].to(like.device, like.dtype)
        return features[rows.clamp(min=0)] * (rows >= 0).unsqueeze(-1)


@dataclass(kw_only=True, eq=False)
class HostedPass(LlmPass):
    """A prompt on its way through a hosted model's decoder."""

    deepstack: Deepstack | None = None
    """Dropped behind the last layer that adds it."""


def check_stages(decoder: nn.Module, stages: Sequence[LlmStage]) -> None:
    """Refuses stages that cannot work inside a hosted model's decoder.

    Raises:
        ConfigError: naming the stage or the kind of layer, and what can be done instead.
    """
    if not stages:
        return
    names = ", ".join(stage.registered_name or type(stage).__name__ for stage in stages)
    try:
        layers = decoder_layers(decoder)
    except ConfigError as error:
        raise ConfigError(
            f"{names}: {error}. Reducers before the LLM work with every decoder, such as evs, uniform and random"
        ) from error
    for stage in stages:
        if stage.needs_states:
            raise ConfigError(
                f"{stage.registered_name!r} reads tokens beside the sequence, and a hosted model gives none"
            )
        if stage.restarts_positions:
            raise ConfigError(
                f"{stage.registered_name!r} counts positions anew, and a hosted model has positions of its own: use "
                "positions=keep"
            )
        stage.check(len(layers))
        stage.check_layers(list(layers))
        if stage.turns_keys:
            Rotary.of(decoder)  # says why keys cannot be turned


def prepare(model: Any) -> None:
    """Hangs the hooks into the decoder of a transformers model, once. They do nothing in a forward without a pass.

    Raises:
        ConfigError: if stages cannot work inside the decoder.
    """
    decoder = model.get_decoder()
    layers = decoder_layers(decoder)
    with _INSTALLING:
        if getattr(decoder, _CARRIES, False):
            return
        vision = getattr(model.config, "vision_config", None)
        deep = len(getattr(vision, "deepstack_visual_indexes", None) or ())
        decoder.register_forward_pre_hook(_take_pass, with_kwargs=True)
        for number, layer in enumerate(layers[:deep]):
            # in front of the harness's own hook, which fills the removed positions of the last layer up
            hook = functools.partial(_add_deepstack, number, deep)
            layer.register_forward_hook(hook, with_kwargs=True, prepend=True)
        install(decoder)
        setattr(decoder, _CARRIES, True)


def carrying(cache: Cache | None, current: HostedPass) -> Cache:
    """A cache that gives the pass to the decoder in its first forward.

    Args:
        cache: an empty dynamic cache; None for a new one.
        current: the pass of the prompt.

    Raises:
        ConfigError: for a cache of another kind.
    """
    cache = DynamicCache() if cache is None else cache
    if type(cache) is not DynamicCache:
        raise ConfigError(f"stages inside the LLM need a DynamicCache, not {type(cache).__name__}")
    cache.waiting_pass = current
    return cache


def _take_pass(
    _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before the decoder: hands the pass to the layers, and takes deepstack features out of the arguments."""
    cache = kwargs.get(CACHE)
    current: HostedPass | None = kwargs.get("llm_pass") or getattr(cache, "waiting_pass", None)
    if current is None:
        return _take_valid(cache, args, kwargs)
    if cache is not None:
        cache.waiting_pass = None
    embeddings = kwargs["inputs_embeds"]  # B P C
    rows = len(current.visual)
    if len(embeddings) != rows and len(embeddings) % rows == 0:  # beams, or several samples of a prompt
        current = current.repeated(len(embeddings) // rows)
    mask, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
    if features is not None and mask is not None:
        mask = mask[..., 0] if mask.ndim == 3 else mask
        number = mask.flatten().cumsum(0).view(mask.shape) - 1
        current.deepstack = Deepstack(features=features, row=number.masked_fill(~mask, -1))
        kwargs = {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}
    return args, {**kwargs, "llm_pass": current}


def _take_valid(
    cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a later pass: hands the layers which new positions are no padding, if that waits on the cache."""
    valid: Tensor | None = getattr(cache, "waiting_valid", None)
    if valid is None:
        return None
    cache.waiting_valid = None
    rows = len(kwargs["inputs_embeds"])
    return args, {**kwargs, "new_valid": valid.repeat_interleave(rows // len(valid), 0)}


def _add_deepstack(
    number: int, layers: int, _layer: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Tensor | None:
    """Behind a layer: adds the tower's features at the positions on which the layer worked."""
    current = kwargs.get("llm_pass")
    if not isinstance(current, HostedPass) or current.deepstack is None:
        return None
    kept = current.kept_at(number)
    output = output + current.deepstack.at(number, kept.position, kept.valid, output)
    if number + 1 == layers:
        current.deepstack = None
    return output


def pass_of_prompt(
    *,
    place: Tensor,
    frame: Tensor,
    visual: Tensor,
    valid: Tensor,
    grid: tuple[int, int] | None,
    stages: Sequence[LlmStage],
    labels: Tensor | None = None,
) -> HostedPass:
    """The pass of a hosted model's prompt. No decision depends on answers: they are not part of it.

    Args:
        place, frame: int64, B P. Raster position and frame of each visual position; anything at text.
        visual: bool, B P. Positions that stages may remove.
        valid: bool, B P. False at padding.
        grid: rows and columns of `place`; None if media have different grids.
        stages: the stages.
        labels: int64, B P, in training; answers are where they are not `IGNORED`.
    """
    behind = visual.long().flip(1).cumsum(1).flip(1) == 0
    begun = visual.cumsum(1) > 0
    prompt = valid if labels is None else valid & (labels == IGNORED)
    return HostedPass(
        visual=visual & valid,
        question=prompt & behind,
        prompt=prompt,
        time_text=valid & begun & ~behind & ~visual,
        place=place.masked_fill(~visual, 0),
        frame=frame.masked_fill(~visual, 0),
        grid=grid,
        valid=valid,
        stages=tuple(stages),
    )


def has_pass(cache: Cache | None) -> bool:
    """Whether a cache was filled by a prompt with stages, so that later text needs no new pass."""
    return pass_of(cache) is not None
