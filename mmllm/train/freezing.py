"""Which parts of a model are trained: named parts are frozen, and what was trained before can be again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from mmllm.errors import ConfigError
from mmllm.fields import closest


def check_parts(model: nn.Module, names: Iterable[str], what: str) -> None:
    """Refuses names that no part of the model has.

    Args:
        model: its children are the parts: `encoder`, `reducers`, `visual_tokenizer`, `path`, `language_model`, ...
        names: the parts.
        what: the field that names them, for the message.

    Raises:
        ConfigError: naming the first one that is unknown, and those there are.
    """
    parts = dict(model.named_children())
    for name in names:
        if name not in parts:
            raise ConfigError(f"{what}: the model has no part {name!r}; {closest(name, parts)}")


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Stops training of the named parts; `encoder` also means the one for still images, if there are two."""
    for name in names:
        model.get_submodule(name).requires_grad_(False)
        if name == "encoder" and getattr(model, "image_encoder", None) is not None:
            model.get_submodule("image_encoder").requires_grad_(False)


@contextmanager
def thawed_afterwards(model: nn.Module) -> Iterator[None]:
    """Lets a stage freeze what it likes: afterwards the same weights are trained as before."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, trained in before:
            weight.requires_grad_(trained)
