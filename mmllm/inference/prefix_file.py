"""A video on disk as the LLM has read it: `mmllm encode clip.mp4 --output clip.kv`, then `mmllm ask clip.kv "..."`.

The file is safetensors: keys and values of each layer as a codec stores them, ids, positions, and the times of the
frames. Its header says which weights, which type of numbers and which rotary embedding it belongs to.

G key heads, P positions in the LLM, D head width, A axes of a position, T frames
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mmllm import registry
from mmllm.checkpoints.weights import header
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.kept_prefix import PrefixSlot
from mmllm.llm.codec import CacheCodec, Role
from mmllm.llm.prefix import Prefix, Reader
from mmllm.runtime.files import replacing
from mmllm.runtime.fingerprint import fingerprint
from mmllm.tokens import VideoClip

SUFFIX = ".kv"
FORMAT, VERSION = "mmllm prefix", "1"
_ROLES: tuple[Role, ...] = ("keys", "values")
_READER = ("weights", "dtype", "rope")
"""Facts about the LLM that has written a file, which must be those of the one that reads it."""


def is_prefix_file(video: Any) -> bool:
    """Whether a source of a video is a file of this kind, by its name."""
    return isinstance(video, (str, Path)) and Path(video).suffix == SUFFIX


def reader_of(qa: Any) -> dict[str, str]:
    """What the cache of a model depends on: its weights, their type, and its rotary embedding."""
    text = qa.model.config.get_text_config()
    rope = {"rope": getattr(text, "rope_parameters", None), "positions": getattr(text, "max_position_embeddings", None)}
    dtype = next(qa.model.language_model.parameters()).dtype
    return {
        "weights": fingerprint(qa.model),
        "dtype": str(dtype).removeprefix("torch."),
        "rope": json.dumps(rope, sort_keys=True),
    }


def save_prefix(path: str | Path, qa: Any, encoded: EncodedVideo, codec: str | Mapping[str, Any] = "plain") -> int:
    """Writes the LLM's cache of a video, and returns the bytes of the file.

    Args:
        path: ends in `.kv`.
        qa: the model, a `VideoQA`.
        encoded: the video, as it encoded it.
        codec: how keys and values are stored, such as `kvcode:keys=64`.

    Raises:
        ConfigError: if the cache of this model cannot be kept.
        InputError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: a file of a kept video ends in {SUFFIX}")
    if (problem := qa.prefix_problem) is not None:
        raise ConfigError(f"the LLM's cache of a video cannot be written: {problem}")
    prefix: Prefix = qa.read_opening(encoded)
    if prefix.current is not None:
        names = ", ".join(stage.registered_name for stage in prefix.current.stages)
        raise ConfigError(f"{names} keeps tensors of its own beside the LLM's cache, which a file does not hold")
    config = registry.config_of("codec", codec)
    coding: CacheCodec = registry.build("codec", config)
    indices = [int(index) for index in (encoded.clip.metadata.get("indices") or ())]
    tensors = {
        "given": prefix.given,
        "ids": prefix.ids,
        "position": prefix.position,
        "following": prefix.following,
        "times_s": torch.from_numpy(encoded.times_s.copy()),
        "indices": torch.tensor(indices[:1] + indices[-1:], dtype=torch.long),
    }
    for number, layer in enumerate(prefix.layers):
        for role in _ROLES:
            stored = coding.encode(getattr(layer, role)[0], number, role)
            tensors |= {_name(number, role, part): value for part, value in stored.items()}
    facts = {
        "format": FORMAT,
        "version": VERSION,
        **reader_of(qa),
        "codec": json.dumps(registry.describe("codec", config)),
        "duration_s": repr(float(encoded.duration_s)),
        "digest": prefix.digest,
        "source": encoded.clip.source,
    }
    with replacing(path) as partial:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial, facts)
    return path.stat().st_size


def open_prefix(path: str | Path, qa: Any) -> EncodedVideo:
    """A video that can be asked about, without frames, from a file that `save_prefix` wrote.

    Args:
        path: the file.
        qa: the model, a `VideoQA`.

    Raises:
        CheckpointError: if the file is cut off, holds something else, or belongs to other weights, another type of
            numbers, another rotary embedding or another version of this format.
        ConfigError: if this model cannot start from a kept cache.
    """
    path = Path(path)
    if not qa.stores_prefix:
        raise ConfigError(f"{path}: a hosted model cannot be asked from a file")
    header(path)  # refuses what is no safetensors file, or a part of one
    if (problem := qa.prefix_problem) is not None:
        raise ConfigError(f"{path}: this model cannot start from a kept cache: {problem}")
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            _require_reader(path, facts, reader_of(qa))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem!s:.200}") from None
    try:
        prefix = _prefix(tensors, facts, qa)
        clip = _clip(tensors, facts, path)
    except (KeyError, ValueError, TypeError, RuntimeError) as problem:
        reason = f"it lacks {problem}" if isinstance(problem, KeyError) else str(problem)
        raise CheckpointError(f"{path}: holds no video as an LLM has read it: {reason:.300}") from None
    return EncodedVideo(clip=clip, sequences={}, prefix=PrefixSlot(prefix), from_file=True)


def _name(layer: int, role: str, part: str) -> str:
    return f"layers.{layer}.{role}{'.' if part else ''}{part}"


def _require_reader(path: Path, facts: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuses a file of another format, version or LLM.

    Raises:
        CheckpointError: naming both.
    """
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: this is no file of a kept video: its header does not say {FORMAT!r}")
    if facts.get("version") != VERSION:
        raise CheckpointError(f"{path}: is of version {facts.get('version')!s:.20}; this mmllm reads version {VERSION}")
    for name in _READER:
        if facts.get(name) != own[name]:
            raise CheckpointError(
                f"{path}: was written by another LLM: {name} {facts.get(name)!s:.200}, and this one has {own[name]}"
            )


def _prefix(tensors: Mapping[str, Tensor], facts: Mapping[str, str], qa: Any) -> Prefix:
    """The prefix in a file, where the model is.

    Raises:
        KeyError, ValueError: if something is missing, or has another shape.
    """
    model = qa.model
    text, device = model.config.get_text_config(), model.input_device
    places = {name: _whole(tensors[name], name) for name in ("given", "ids", "position", "following")}
    given, ids, position, following = places.values()
    count = len(ids)
    if not (0 < len(given) <= count) or given.ndim != 1 or ids.ndim != 1 or position.shape != (1, count):
        raise ValueError("the shapes of its ids and positions do not fit each other")
    allowed = (ids < text.vocab_size) | model.is_placeholder(ids)
    if not bool(allowed.all()) or following.tolist() != [count] or int(position.max()) >= count:
        raise ValueError("its ids or positions are none of this model")
    coding: CacheCodec = registry.build("codec", json.loads(facts["codec"]))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dtype = next(model.language_model.parameters()).dtype
    cache = DynamicCache(config=text)
    for number, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise ValueError(f"layers of the kind {type(layer).__name__} are not stored in files")
        states = []
        for role in _ROLES:
            name = _name(number, role, "")
            own = {
                key.removeprefix(name).removeprefix("."): value
                for key, value in tensors.items()
                if key == name or key.startswith(f"{name}.")
            }
            decoded = coding.decode(own, (heads, count, width), number, role).to(device, dtype)
            if not bool(decoded.isfinite().all()):
                raise ValueError(f"the {role} of layer {number} are not finite")
            states.append(decoded.unsqueeze(0))
        layer.update(*states)
    if len(facts["digest"]) != 64:
        raise ValueError("its digest is no SHA-256")
    return Prefix(
        given=given.to(device),
        ids=ids.to(device),
        position=position.to(device),
        following=following.to(device),
        layers=tuple(cache.layers),
        digest=facts["digest"],
        reader=Reader.of(model.language_model),
    )


def _whole(values: Tensor, name: str) -> Tensor:
    """The tensor, of whole numbers from 0 on."""
    if values.dtype != torch.int64 or not values.numel() or int(values.min()) < 0:
        raise ValueError(f"{name} must be whole numbers from 0 on")
    return values


def _clip(tensors: Mapping[str, Tensor], facts: Mapping[str, str], path: Path) -> VideoClip:
    """The times of the video's frames, with black pictures of one pixel."""
    times_s, indices = tensors["times_s"], tensors["indices"].tolist()
    if times_s.dtype != torch.float64 or times_s.ndim != 1 or not len(times_s) or len(indices) not in (0, 2):
        raise ValueError("times_s must be float64, one for each frame, and indices two numbers or none")
    duration_s = float(facts["duration_s"])
    if not math.isfinite(duration_s):
        raise ValueError("duration_s must be finite")
    return VideoClip(
        frames=np.zeros((len(times_s), 1, 1, 3), dtype=np.uint8),
        times_s=times_s.numpy(),
        duration_s=duration_s,
        source=facts.get("source") or str(path),
        metadata={"indices": tuple(indices)} if indices else {},
    )
