"""The mode of a model that is asked, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model as it is when it is asked: no dropout, and batch norms use their running statistics.

    Afterwards it has the mode of before.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
