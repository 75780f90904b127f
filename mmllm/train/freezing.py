"""Freezes named parts of a model, and restores which weights are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from mmllm.errors import ConfigError
from mmllm.fields import closest


def check_parts(model: nn.Module, names: Iterable[str], what: str) -> None:
    """Checks that the model has all named parts.

    Args:
        model: its children are the parts: `encoder`, `reducers`, `visual_tokenizer`, `path`, `language_model`, ...
        names: the parts.
        what: the config field that has the names, for the message.

    Raises:
        ConfigError: if the model lacks a part; the message has the name and the allowed names.
    """
    parts = dict(model.named_children())
    for name in names:
        if name not in parts:
            raise ConfigError(f"{what}: the model has no part {name!r}; {closest(name, parts)}")


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Freezes the named parts; `encoder` also freezes the encoders of still images and sound, if there are some."""
    for name in names:
        model.get_submodule(name).requires_grad_(False)
        for other in ("image_encoder", "audio_encoder") if name == "encoder" else ():
            if getattr(model, other, None) is not None:
                model.get_submodule(other).requires_grad_(False)


@contextmanager
def thawed_afterwards(model: nn.Module) -> Iterator[None]:
    """Restores `requires_grad` of all weights afterwards, whatever the code inside freezes."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, trained in before:
            weight.requires_grad_(trained)
