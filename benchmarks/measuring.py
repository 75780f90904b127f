"""Time that work takes: of the processor or on the wall, and of several candidates in turns.

Candidates take turns (A B C A B C ...), so that a machine that is busy with something else slows all of them alike.
Processor time is that of the whole process, with all its threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Name = TypeVar("Name", bound=Hashable)
Work = Callable[[], Any]


def timed(work: Callable[[], Result], clock: Callable[[], float] = time.process_time) -> tuple[Result, float]:
    """What the work returns, and the seconds that it took by the clock."""
    begun = clock()
    result = work()
    return result, clock() - begun


def processor_s(work: Work) -> float:
    """Seconds of the processor that work takes."""
    return timed(work)[1]


def wall_s(work: Work) -> float:
    """Seconds that pass while work is done."""
    return timed(work, time.perf_counter)[1]


def operations(work: Work) -> int:
    """Operations of matrix products that work takes, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds_on(device: torch.device) -> Callable[[Work], float]:
    """How seconds are counted on a device: of the processor, or on the wall until an accelerator has finished."""
    if device.type == "cpu":
        return processor_s
    import torch

    def finished_s(work: Work) -> float:
        def finish() -> None:
            work()
            torch.cuda.synchronize(device)

        torch.cuda.synchronize(device)
        return wall_s(finish)

    return finished_s


def in_turns(
    works: Mapping[Name, Work],
    rounds: int,
    *,
    take: Callable[[Work], Any] = processor_s,
    warm_up: int = 1,
    and_back: bool = False,
) -> dict[Name, list[Any]]:
    """Measures several candidates in turns.

    Args:
        works: name of each candidate, and what it does.
        rounds: how often each is measured.
        take: does the work and returns what is measured; processor seconds if nothing is given.
        warm_up: rounds before, which do not count: caches, imports, state that is made once.
        and_back: whether every other round goes backwards (A B C C B A ...).

    Returns:
        For each candidate what was taken in each round, in order.
    """
    names = list(works)
    taken: dict[Name, list[Any]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        for name in names[::-1] if and_back and number % 2 else names:
            measured = take(works[name])
            if number >= 0:
                taken[name].append(measured)
    return taken


def quickest_s(work: Work, times: int = 3) -> float:
    """Processor seconds of the quickest of so many times."""
    return min(processor_s(work) for _ in range(times))
