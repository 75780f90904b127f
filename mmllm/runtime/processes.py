"""The processes of one run, as `torchrun` and `accelerate launch` start them. Without these there is one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
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


def multiplies_bfloat16() -> bool:
    """True if there is no GPU, and the CPU has instructions that multiply matrices in bfloat16."""
    import torch

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # older versions of torch lack them
    return not torch.cuda.is_available() and any(getattr(torch.cpu, name, bool)() for name in names)


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


def end_with_parent() -> None:
    """Called in a child process: it is killed when its parent dies, whatever it is doing.

    Linux does that itself. It counts the thread that started the child as the parent. Elsewhere a thread looks for the
    parent twice a second.
    """
    parent = os.getppid()
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)
        return

    started_by = multiprocessing.parent_process()  # Windows keeps the number of a parent that has died

    def watch() -> None:
        if started_by is not None:
            started_by.join()
        while os.getppid() == parent and started_by is None:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="mmllm-parent").start()


def limit_memory(more_bytes: int) -> None:
    """Called in a child process: from now on it gets at most `more_bytes` of memory. Linux only; others have no limit.

    A request for more then fails with a MemoryError, or ends this process.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more_bytes, mapped + more_bytes))
