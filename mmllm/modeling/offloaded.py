"""Weights that accelerate keeps on disk or on the CPU until a module is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """Loads the weights of a module and of its submodules, for code that reads them and does not call the module."""
    with ExitStack() as loaded:
        for part in module.modules():
            if hasattr(part, "_hf_hook"):
                from accelerate.utils import align_module_device

                loaded.enter_context(align_module_device(part))
        yield
