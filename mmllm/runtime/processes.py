"""The processes of one run, as `torchrun` and `accelerate launch` start them. Without these there is one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from mmllm.errors import require_extra

Item = TypeVar("Item")

PATIENCE = timedelta(hours=6)
"""How long processes wait for another one that renders or encodes videos for all."""


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True in one process only: the one that writes files and shows progress for all."""
    return rank() == 0


def wait() -> None:
    """Waits until every process has called this."""
    if count() > 1:
        require_extra("eval", "a run of several processes", "accelerate")
        from accelerate import PartialState

        PartialState(cpu=only_cpus(), timeout=PATIENCE).wait_for_everyone()


def only_cpus() -> bool:
    """True if there are several processes and no GPU; they then communicate through gloo."""
    import torch

    return count() > 1 and not torch.cuda.is_available()


@contextmanager
def main_first() -> Iterator[None]:
    """Runs the block in the main process first, then in the others, which can use its result."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def share(items: Sequence[Item]) -> list[Item]:
    """The items on which this process works. Every item belongs to exactly one process."""
    return list(items[rank() :: count()])
