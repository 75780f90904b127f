"""Attention inside a hosted vision tower, noted while the tower runs: no eager attention, no square matrix.

    listen(attention)   a copy of its own configuration names our attention function; done once a module
    with noting(wanted) its calls are noted, in order, in this thread only
    family.folded(...)  one number for each visual token, of the calls for all frames or windows

F frames of a call, H heads, N patches of a frame (with a class token, if there is one), D head width, V visual tokens
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mmllm.errors import ConfigError
from mmllm.hosting.media import Source
from mmllm.llm.attention import own_attention, receive

NOTED = "mmllm_noted"
"""Name under which transformers knows the attention function that notes."""
Kind = Literal["cls_attention", "mean_attention"]
_LISTENING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What a family says about a vision tower whose attention can be noted."""

    attentions: Sequence[nn.Module]
    """The attention module of each block."""
    features_block: int
    """The block that made the features: scores without a number are of this one."""
    kinds: frozenset[str]
    """`mean_attention`, and `cls_attention` if there is a class token, which is then the first of a frame's."""
    full: Collection[int] | None = None
    """Blocks that attend to the whole frame; None for all. In the others only patches of a window are compared."""

    def block(self, name: str) -> tuple[Kind, int]:
        """The kind and the block of a score such as `mean_attention` or `cls_attention@0`.

        Raises:
            ConfigError: if the tower cannot give it; the message says what it can give.
        """
        kind, at, number = name.partition("@")
        offers = ", ".join(sorted(self.kinds))
        if kind not in self.kinds:
            raise ConfigError(f"{name!r} cannot be read from this tower: it gives {offers}")
        count = len(self.attentions)
        if at and not (number.isdigit() and int(number) < count):
            raise ConfigError(f"{name!r}: this tower has blocks 0 to {count - 1}")
        block = int(number) if at else self.features_block
        if self.full is not None and block not in self.full:
            allowed = ", ".join(map(str, sorted(self.full)))
            raise ConfigError(
                f"{name!r}: block {block} attends inside windows, so its attention compares no two windows; blocks "
                f"{allowed} attend to whole frames"
            )
        return kind, block  # type: ignore[return-value]

    def offers(self, name: str) -> bool:
        """Whether the tower can give this score."""
        try:
            self.block(name)
        except ConfigError:
            return False
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A score that is to be noted while a feature method runs."""

    name: str
    source: Source
    attention: nn.Module
    kind: Kind


Calls = dict[str, dict[Source, list[Tensor]]]
"""Name of a score -> feature method -> float32, F N for each call of the attention module, in order."""


@dataclass(kw_only=True)
class _Notes:
    """What is noted in one thread."""

    wanted: Sequence[Wanted]
    calls: Calls = field(default_factory=dict)


_notes: ContextVar[_Notes | None] = ContextVar("mmllm_tower_attention", default=None)
_source: ContextVar[Source | None] = ContextVar("mmllm_feature_method", default=None)


@contextmanager
def running(source: Source) -> Iterator[None]:
    """Says that a feature method runs in this thread."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)


def listen(attention: nn.Module) -> None:
    """Makes an attention module call our function, which calls the module's own. A second call does nothing.

    Raises:
        ConfigError: if the module has another attention than sdpa or eager.
    """
    own: Any = attention.config
    with _LISTENING:
        if own._attn_implementation == NOTED:
            return
        if own._attn_implementation not in ("sdpa", "eager"):
            raise ConfigError(
                f"attention of the vision tower is read with sdpa or eager attention, not {own._attn_implementation!r}"
            )
        AttentionInterface.register(NOTED, noted_attention)
        changed = copy.copy(own)  # a copy: all other blocks, and how masks are made, stay as they are
        changed.own_attn_implementation, changed._attn_implementation = own._attn_implementation, NOTED
        attention.config = changed


@contextmanager
def noting(wanted: Sequence[Wanted]) -> Iterator[Calls]:
    """Notes calls of attention modules in this thread.

    `cls_attention` is the first query's attention to each key, `mean_attention` what each key receives from all
    queries; means over heads, and each frame sums to 1.
    """
    for score in wanted:
        listen(score.attention)
    calls: Calls = {}
    token = _notes.set(_Notes(wanted=wanted, calls=calls))
    try:
        yield calls
    finally:
        _notes.reset(token)


def noted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The module's own attention; what it received is noted if this thread asks for it.

    Args:
        module: the attention module.
        query, key, value: F H N D.
        attention_mask: of transformers' attention functions; None if every query sees every key.
        kwargs: of transformers' attention functions.
    """
    if (notes := _notes.get()) is not None:
        source = _source.get()
        for score in notes.wanted:
            if score.attention is module and score.source == source:
                values = _attention(score.kind, query, key, attention_mask, kwargs.get("scaling"))
                notes.calls.setdefault(score.name, {}).setdefault(score.source, []).append(values)
    return own_attention(module)(module, query, key, value, attention_mask, **kwargs)


def _attention(kind: Kind, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """float32, F N: the first query's attention, or the mean over all queries."""
    frames, _, count, width = query.shape
    rows = torch.zeros(frames, count, device=query.device)
    rows[:, : 1 if kind == "cls_attention" else count] = 1
    if mask is None:
        mask = rows.new_ones(1, 1, 1, 1, dtype=torch.bool).expand(1, 1, count, count)  # takes no memory
    received = receive(query, key, mask, {kind: rows}, scaling or width**-0.5)[kind]
    return received / rows.sum(-1, keepdim=True)


def wanted_of(towers: Mapping[Source, Tower], names: Collection[str]) -> list[Wanted]:
    """What has to be noted for scores of these names.

    Args:
        towers: feature method -> the tower that it runs.
        names: such as `mean_attention` or `cls_attention@0`.

    Raises:
        ConfigError: if a tower cannot give one of them.
    """
    wanted = []
    for name in names:
        for source, tower in towers.items():
            kind, block = tower.block(name)
            wanted.append(Wanted(name=name, source=source, attention=tower.attentions[block], kind=kind))
    return wanted
