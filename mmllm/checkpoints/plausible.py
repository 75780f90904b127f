"""Looks at the small files of a model before anything is built from them: sizes, numbers, patterns of the tokenizer.

A configuration of somebody else can ask for 10^9 layers, and a tokenizer can hold a pattern that never ends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from mmllm.checkpoints.names import COMPUTED
from mmllm.checkpoints.patterns import may_explode
from mmllm.errors import CheckpointError, MmllmError
from mmllm.hub.sources import read_json
from mmllm.modeling.tower import check_fit

_SIZE = re.compile(
    r"(hidden|intermediate|vocab|image|patch|embed|head|mlp|projection)_(size|dim|width)|width|channels|heads|"
    r"num_(attention_|key_value_)?heads|max_position_embeddings|embed_dim|d_model|ffn_dim"
)
_LAYERS = re.compile(r"(num_(hidden_)?|n_)?layers?|depths?|n_layer|num_blocks")
_FRACTIONS = re.compile(r"reducers\[\d+\]\.depths\b")
"""Where numbers of layers are fractions of the LLM's depth, as in ATP."""
_POLICIES = re.compile(r"context\[\d+\]\.")
"""Settings of policies, which check themselves: files that were measured (`heads`, `channels`), and shares of depth."""
_COUNT = re.compile(r"num_(time_tokens|frames)|image_frames|size|step|pool|num_beams|num_return_sequences")
_FLAG = re.compile(
    r"output_(attentions|hidden_states|scores|logits|router_logits)|return_dict\w*|do_sample|use_cache|tie_word_embeddings"
)
_LARGEST_COUNT = 1_000_000
_LARGEST_SIZE, _MOST_LAYERS, _LARGEST_NUMBER = 1 << 24, 1024, 1 << 53
_MOST_GROWTH = 256
"""How many times longer a tokenizer may make a text before it is cut into tokens."""
_HEAD = "language_model.lm_head."


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuses sizes that no model can have, and numbers that are none.

    Args:
        config: the mapping of a `config.json`.
        file: its path, for messages.

    Raises:
        CheckpointError: naming the field, its value and what is allowed.
    """
    for place, name, value in _fields(config):
        if isinstance(value, float) and math.isnan(value):
            raise CheckpointError(f"{file}: {place} = NaN: must be a number")
        if _FLAG.fullmatch(name) and not isinstance(value, (bool, NoneType)):
            raise CheckpointError(f"{file}: {place} = {_shown(value)}: must be true or false")
        if name.endswith("_token_id"):
            _require_whole(file, place, value, _LARGEST_SIZE, least=-1)
        size = "" if _POLICIES.match(place) else name
        if _SIZE.fullmatch(size):
            _require_whole(file, place, value, _LARGEST_SIZE)
        elif _LAYERS.fullmatch(size) and not _FRACTIONS.match(place):
            _require_whole(file, place, value, _MOST_LAYERS)
        elif _COUNT.fullmatch(name) and not isinstance(value, str):
            _require_whole(file, place, value, _LARGEST_COUNT, least=0)
        elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER and "max_length" not in name:
            raise CheckpointError(f"{file}: {place} = {_shown(value)}: must be at most 2^53")


def _fields(value: Any, place: str = "", name: str = "") -> Iterator[tuple[str, str, Any]]:
    """Place, name and value of all plain fields; entries of a list have the name of the list."""
    if isinstance(value, (Mapping, list)) and _is_single(name, value):
        yield place, name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "origin":  # what the published model said of itself; nothing is built from it
                yield from _fields(item, f"{place}.{key}" if place else str(key), str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _fields(item, f"{place}[{number}]", name)
    else:
        yield place, name, value


def _is_single(name: str, value: Any) -> bool:
    """Whether a field of this name holds no mapping or list; several tokens may end an answer."""
    if name == "eos_token_id":
        return not (isinstance(value, list) and all(isinstance(item, int) for item in value))
    single = _FLAG.fullmatch(name) or re.fullmatch(r"num_(frames|time_tokens|beams|return_sequences)", name)
    return bool(single) or name.endswith("_token_id")


def _require_whole(file: Path, place: str, value: Any, largest: int, least: int = 1) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest
    if value is not None and not whole:
        raise CheckpointError(f"{file}: {place} = {_shown(value)}: must be a whole number from {least} to {largest}")


def _shown(value: Any) -> str:
    """A value in a message; numbers of many digits by their length."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.60}"


def check_small_files(folder: Path) -> None:
    """Refuses impossible values in the files beside `config.json`.

    Raises:
        CheckpointError: naming the file and the field.
    """
    for name in ("generation_config.json", "processor_config.json"):
        if (folder / name).is_file():
            check_config(read_json(folder / name), folder / name)
    if (folder / "tokenizer_config.json").is_file():
        length = read_json(folder / "tokenizer_config.json").get("model_max_length")
        if isinstance(length, bool) or not isinstance(length, (int, float, NoneType)):
            raise CheckpointError(f"{folder}: model_max_length = {_shown(length)}: must be a number")


def check_words(processor: Any, config: Any, folder: Path) -> None:
    """Refuses a tokenizer whose special words have no row in the embedding table, and an impossible number of frames.

    Raises:
        CheckpointError: naming the first such word, or the number.
    """
    if isinstance(processor.num_frames, bool) or not isinstance(processor.num_frames, int) or processor.num_frames < 1:
        raise CheckpointError(f"{folder}: num_frames = {_shown(processor.num_frames)}: must be at least 1")
    tokenizer, rows = processor.tokenizer, config.text_config.vocab_size
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        word, number = getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")
        if number is not None and number >= rows:
            raise CheckpointError(f"{folder}: {name} {word!r:.60} has id {number}, the embedding table {rows} rows")


def check_layers(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuses more layers of the LLM than the weights have tensors, before these layers are built.

    Raises:
        CheckpointError: with both numbers.
    """
    layers = getattr(config.text_config, "num_hidden_layers", 0)
    if layers > len(weights):
        raise CheckpointError(f"{folder}: config.json asks for {layers} layers, but there are {len(weights)} tensors")


def check_shapes(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Compares the shapes of weights with a model without storage, before a model with storage is built.

    Args:
        config: an `MmllmConfig`.
        weights: tensors of a folder that mmllm saved, on the meta device.
        folder: the folder, for messages.

    Raises:
        CheckpointError: if the configuration describes no model, or one with other tensors.
    """
    from mmllm.model import MmllmForConditionalGeneration

    check_config(config.to_dict(), folder / "config.json")
    check_layers(config, weights, folder)
    try:
        with torch.device("meta"):
            expected = MmllmForConditionalGeneration(config).state_dict()
    except MmllmError:
        raise
    except Exception as problem:  # the parts of other libraries raise errors of their own types
        raise CheckpointError(f"{folder}: config.json describes no model: {problem!s:.300}") from None
    tied = config.tie_word_embeddings
    check_fit(
        {name: tensor for name, tensor in weights.items() if not name.endswith(COMPUTED)},
        {name: tensor for name, tensor in expected.items() if name in weights or not (tied and name.startswith(_HEAD))},
        what=f"the configuration in {folder}",
    )


def check_tokenizer(folder: Path) -> None:
    """Refuses a tokenizer with a pattern that may take forever, or that makes a text much longer.

    Raises:
        CheckpointError: naming the pattern, or if the file is no JSON object.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    content = read_json(file)
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for step in _mappings(content.get(part)):
            pattern = step.get("Regex")
            if isinstance(pattern, str) and may_explode(pattern):
                raise CheckpointError(
                    f"{file}: its pattern {pattern[:60]!r} repeats a repetition, so that a short text can take forever"
                )
            written = step.get("content", step.get("prepend"))
            if part == "normalizer" and isinstance(written, str):
                growth *= max(1, len(written))
    if growth > _MOST_GROWTH:
        raise CheckpointError(f"{file}: its normalizer makes texts up to {growth} times longer, above {_MOST_GROWTH}")


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _mappings(item)
