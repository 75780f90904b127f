"""Runs of a benchmark that are trained one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from mmllm.runtime.processes import end_with_parent

Result = TypeVar("Result")


def results_of(work: Callable[..., Result], turns: Sequence[tuple[Any, int]], jobs: int) -> Iterator[Result]:
    """The results of all runs in their order.

    Args:
        work: called with a variant and `seed`.
        turns: variant and seed of each run.
        jobs: how many run at a time, one thread each if there are several.
    """
    if jobs == 1:
        yield from (work(variant, seed=seed) for variant, seed in turns)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin) as pool:
        for run in [pool.submit(work, variant, seed=seed) for variant, seed in turns]:
            yield run.result()


def _begin() -> None:
    """Called in each process of several: it computes with one thread, and ends with the benchmark."""
    end_with_parent()
    torch.set_num_threads(1)
