"""The beginning of a prompt, up to its last visual token, with the LLM's cache of it: read once for many questions.

    row 0   text, video | question                 rows of a batch begin with the same positions of the cache,
    row 1   text, video | padding | question       so a shorter question is padded behind them

Padding in front of the row, where `generate` expects it, would move the video to other slots than the cache has.

B rows, G positions as the processor writes them, P positions in the LLM, A axes of a position, L positions of a row,
N positions of a question
"""

from __future__ import annotations

import copy
import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.llm.cache import RecordLayer
from mmllm.llm.unwritten import Unwritten
from mmllm.llm.values import LlmPass
from mmllm.runtime.fingerprint import fingerprint

DYNAMIC = (None, "dynamic", "dynamic_full")
"""Values of `generate`'s `cache_implementation` that mean a cache which grows."""
_KINDS = (DynamicLayer, DynamicSlidingWindowLayer, RecordLayer)
"""Layers whose tensors are never written into: several caches may share them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """An LLM with the weights that it had when it read a prefix."""

    module: weakref.ref[nn.Module]
    written: int
    """How often its weights had been written to."""
    places: frozenset[tuple[torch.dtype, torch.device]]
    """Types and devices of its weights."""
    adapters: tuple[tuple[bool, str], ...]
    """Of each layer with adapters: whether they are off, and which act."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The LLM as it is now."""
        modules = list(model.modules())  # one walk: this is done at each question
        weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
        written = sum(0 if weight.is_inference() else weight._version for weight in weights)
        places = frozenset((weight.dtype, weight.device) for weight in weights)
        off = ((layer, getattr(layer, "disable_adapters", None)) for layer in modules)
        adapters = tuple((is_off, str(layer.active_adapters)) for layer, is_off in off if isinstance(is_off, bool))
        return cls(module=weakref.ref(model), written=written, places=places, adapters=adapters)

    def is_still(self, model: nn.Module) -> bool:
        """Whether this is the LLM, and it has the same weights."""
        if self.module() is not model:
            return False
        now = Reader.of(model)
        return (now.written, now.places, now.adapters) == (self.written, self.places, self.adapters)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """The beginning of a prompt, and what every layer of the LLM has stored of it."""

    given: Tensor
    """int64, G. Its ids as the processor writes them; a prompt that begins with them has this prefix."""
    ids: Tensor
    """int64, P. The ids of the positions that the LLM reads: more than the given ones where one placeholder stands for
    a video, fewer where a reducer has dropped tokens."""
    position: Tensor
    """int64, A P. Their positions; one axis, or four with M-RoPE."""
    following: Tensor
    """int64, A. The position of what comes next."""
    layers: tuple[Any, ...]
    """The layers of a cache of one row."""
    digest: str
    """SHA-256 of what the LLM has read, in hexadecimal digits."""
    reader: Reader
    """The LLM that has read it; no other can go on from it."""
    current: LlmPass | None = None
    """The pass of the stages inside the LLM; None without stages."""
    source: Unwritten | None = None
    """The visual tokens from which the digest was computed; None if that is not known."""
    about: str = ""
    """The text that went into the digest beside them."""

    def __post_init__(self) -> None:
        check_layers(self.layers)

    def is_of(self, model: nn.Module, digest: str) -> bool:
        """Whether an LLM has read it, and would read the same again, of which this is the digest."""
        return self.digest == digest and self.reader.is_still(model)

    def is_made_of(self, tensors: Sequence[Tensor], about: str, given: Tensor, model: nn.Module) -> bool:
        """Whether an LLM has read it, from these very tensors, this text and these ids: then the digest is the same."""
        same = self.source is not None and self.source.are(tensors) and self.about == about
        return same and torch.equal(self.given, given) and self.reader.is_still(model)

    def require_reader(self, model: nn.Module) -> None:
        """Refuses another LLM, other weights and another type of numbers.

        Raises:
            CheckpointError: with the fingerprints of both.
        """
        if self.reader.is_still(model):
            return
        reader = self.reader.module()
        was = "a model that is gone" if reader is None else f"the LLM {fingerprint(reader)}"
        types = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype, _ in self.reader.places))
        raise CheckpointError(
            f"the kept prefix was read by {was} in {types}, and cannot be continued by the LLM {fingerprint(model)}: "
            "its weights are others, or have been changed, converted or moved since"
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values."""
        return sum(part.nbytes for layer in _stored(self.layers) for part in (layer.keys, layer.values))

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is held: also positions, and what stages inside the LLM have stored."""
        tensors = [self.given, self.ids, self.position]
        for layer in _stored(self.layers):
            if isinstance(layer, RecordLayer):
                tensors += [layer.position, layer.valid, *layer.stored_by_stages()]
        return self.cache_bytes + sum(tensor.nbytes for tensor in tensors)

    def begins(self, input_ids: Tensor) -> bool:
        """Whether a prompt (int64, L, as the processor writes it) begins with these ids, and goes on."""
        count = len(self.given)
        return len(input_ids) > count and torch.equal(input_ids[:count].to(self.given.device), self.given)

    def rows(self, prompts: Sequence[Tensor], pad_token_id: int) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (B L) and `position_ids` (B L, or A B L) of prompts, padded behind the prefix.

        Args:
            prompts: int64, L each, as the processor writes them, without padding.
            pad_token_id: id of the padding.

        Raises:
            InputError: if a prompt does not begin with the prefix.
        """
        for number, prompt in enumerate(prompts):
            if not self.begins(prompt):
                raise InputError(f"prompt {number} does not begin with the {len(self.given)} ids of the kept prefix")
        device = self.ids.device
        questions = [prompt[len(self.given) :].to(device) for prompt in prompts]
        longest = max(map(len, questions))
        ids, masks, positions = [], [], []
        for question in questions:
            padding = longest - len(question)
            counted = self.following.unsqueeze(1) + torch.arange(len(question), device=device)  # A N
            ids.append(torch.cat([self.ids, self.ids.new_full((padding,), pad_token_id), question]))
            hole = self.ids.new_zeros(padding)
            masks.append(torch.cat([torch.ones_like(self.ids), hole, torch.ones_like(question)]))
            positions.append(torch.cat([self.position, self.position.new_zeros(len(counted), padding), counted], -1))
        whole = torch.stack(positions, 1)  # A B L
        return {
            "input_ids": torch.stack(ids),
            "attention_mask": torch.stack(masks),
            "position_ids": whole[0] if len(whole) == 1 else whole,
        }

    def cache(self, rows: int) -> DynamicCache:
        """A cache of so many rows that holds the prefix. What is added to it does not change the prefix."""
        cache = DynamicCache()
        cache.layers = [copy.copy(layer) for layer in self.layers]
        cache.layer_class_to_replicate = None
        for layer in cache.layers:
            if isinstance(layer, RecordLayer):
                layer.batch_select_indices(torch.zeros(rows, dtype=torch.long))
            else:  # without a copy: the first update makes one
                layer.keys, layer.values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
        if self.current is not None:
            cache.llm_pass = self.current.repeated(rows)
        return cache


def _stored(layers: Iterable[Any]) -> Iterator[Any]:
    """The layers of a cache, with the banks of one that is divided in its place."""
    for layer in layers:
        yield from layer.parts if isinstance(layer, RecordLayer) else (layer,)


def check_layers(layers: Iterable[Any]) -> None:
    """Refuses layers of a cache that cannot be kept.

    Raises:
        ConfigError: naming their kind.
    """
    for layer in layers:
        if type(layer) not in _KINDS:
            raise ConfigError(f"the LLM's cache has layers of the kind {type(layer).__name__}, which cannot be kept")


def has_full_attention(config: Any) -> bool:
    """Whether all layers of an LLM, by its configuration, attend to all positions before."""
    return are_full(DynamicCache(config=config).layers)


def are_full(layers: Iterable[Any]) -> bool:
    """Whether layers of a cache keep all positions."""
    return all(type(layer) is DynamicLayer for layer in layers)


def takes_padding(layers: Iterable[Any]) -> bool:
    """Whether questions of different lengths may share a batch: a sliding window would count the padding."""
    return not any(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers)


OTHER_WAYS = (
    "past_key_values", "cache", "inputs_embeds", "prefill_chunk_size", "custom_generate", "assistant_model",
    "assistant_early_exit", "prompt_lookup_num_tokens",
)  # fmt: skip
"""Options of `generate` with which a prompt is read in another way."""


def starts_from_prefix(option: Callable[[str], Any]) -> bool:
    """Whether `generate` can start from a prefix: if its own loop may use a dynamic cache that nobody else has given.

    Args:
        option: function from the name of an option to its value.
    """
    is_dynamic = option("cache_implementation") in DYNAMIC and option("use_cache") is not False
    return is_dynamic and all(option(name) is None for name in OTHER_WAYS)


def copies_of_rows(option: Callable[[str], Any]) -> int:
    """How often `generate` repeats every row, for beams or for several samples; `option` is as above."""
    return max(option(name) or 1 for name in ("num_beams", "num_return_sequences"))


def digest_of(*read: Tensor, about: str = "") -> str:
    """SHA-256 of a text and of tensors with their shapes and types, in hexadecimal digits."""
    digest = hashlib.sha256(about.encode())
    for values in read:
        digest.update(f"{tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
