"""What the machine cannot work with, refused by name before anything is computed. Nothing falls back silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mmllm.decoding.masks import window_of
from mmllm.errors import ConfigError
from mmllm.llm.cache import CACHE

_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def checked_inputs(name: str, model: Any, input_ids: Tensor, options: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a decoding method, with a cache that keeps every position.

    Args:
        name: of the method, for messages.
        model: the target.
        input_ids: int64, B L.
        options: transformers' generation configuration.
        inputs: what `generate` gives to a decoding method.

    Raises:
        ConfigError: naming what does not work with drafts.
    """
    rows = len(input_ids if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"])
    if options.num_beams > 1 or options.num_return_sequences > 1:
        raise ConfigError(
            f"decoding {name}: drafts continue one text, and num_beams = {options.num_beams}, num_return_sequences = "
            f"{options.num_return_sequences} are asked for"
        )
    for output in _OUTPUTS:
        if getattr(options, output, None):
            raise ConfigError(f"decoding {name}: {output} is not given, since a pass computes other positions, too")
    if options.use_cache is False or inputs.get("use_cache") is False:
        raise ConfigError(f"decoding {name}: use_cache = False: drafts are verified behind a cache")
    if getattr(options, "prefill_chunk_size", None) is not None:
        raise ConfigError(f"decoding {name}: prefill_chunk_size: a prompt is read in one pass: leave it out")
    return {**inputs, CACHE: checked_cache(name, model, rows, inputs.get(CACHE)), "use_cache": True}


def checked_cache(name: str, model: Any, rows: int, cache: Any) -> DynamicCache:
    """A cache that keeps every position: the given one, or a new one in place of an empty one.

    Args:
        name: of the method, for messages.
        model: the target.
        rows: how many texts are to be written.
        cache: that is given; None for none.

    Raises:
        ConfigError: for several texts, an LLM that cannot read a tree, or a cache that holds only some positions.
    """
    if rows != 1:
        raise ConfigError(f"decoding {name}: one text at a time, not a batch of {rows}: ask questions one by one")
    check_llm(name, model)
    return _kept_whole(name, cache)


def check_llm(name: str, model: Any) -> None:
    """Refuses an LLM that cannot read a tree behind a cache.

    Raises:
        ConfigError: naming its stages, its attention or its layers.
    """
    if stages := getattr(model, "llm_stages", None):
        inside = ", ".join(stage.registered_name for stage in stages)
        raise ConfigError(
            f"decoding {name}: {inside} works inside the LLM, where one mask cannot fit all layers: take drafts or "
            "these stages"
        )
    config = model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None) or ""
    if attention not in ("eager", "sdpa"):
        raise ConfigError(f"decoding {name}: a tree needs eager or sdpa attention, not {attention!r}")
    try:
        window_of(config)
    except ConfigError as problem:
        raise ConfigError(f"decoding {name}: {problem}") from None


def _kept_whole(name: str, cache: Any) -> DynamicCache:
    """A cache whose layers keep every position: the given one, or a new one in place of an empty one.

    A cache that `generate` made from a configuration throws away what is outside of a sliding window.
    """
    if cache is None:
        return DynamicCache()
    if getattr(cache, "llm_pass", None) is not None:
        raise ConfigError(f"decoding {name}: the cache belongs to stages inside the LLM")
    offloaded = getattr(cache, "offloading", False)
    if type(cache) is not DynamicCache or offloaded:
        kind = f"{'offloaded ' if offloaded else ''}{type(cache).__name__}"
        raise ConfigError(f"decoding {name}: drafts need a DynamicCache, whose positions can be taken back, not {kind}")
    others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    if others and not cache.get_seq_length() and not getattr(cache, "_is_user_defined", False):
        return DynamicCache()
    if others:
        raise ConfigError(
            f"decoding {name}: the cache has layers {', '.join(others)}, which do not keep every position"
        )
    return cache


def same_vocabulary(name: str, target: int, drafter: int) -> None:
    """Refuses a drafter with another vocabulary, by the numbers of ids.

    Raises:
        ConfigError: naming both.
    """
    if target != drafter:
        raise ConfigError(
            f"decoding {name}: the drafter has {drafter} ids and the target {target}: both need one vocabulary"
        )
