"""The processes of one run, as `torchrun` and `accelerate launch` start them; without either there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

Item = TypeVar("Item")

PATIENCE = timedelta(hours=6)
"""How long processes wait for one that renders or encodes videos for all of them."""


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True in the process that writes what only one may write."""
    return rank() == 0


def wait() -> None:
    """Goes on when every process has come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=only_cpus(), timeout=PATIENCE).wait_for_everyone()


def only_cpus() -> bool:
    """True where several processes have no GPU to work on; they then talk through gloo."""
    import torch

    return count() > 1 and not torch.cuda.is_available()


@contextmanager
def main_first() -> Iterator[None]:
    """Lets the main process do a piece of work before the others, who then find it done."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def share(items: Sequence[Item]) -> list[Item]:
    """Those of the items that are this process's to work on: every one is somebody's."""
    return list(items[rank() :: count()])
