"""benchmarks/memory.py: the peak of known work."""

import sys

import numpy as np
import psutil
import pytest
import torch

from benchmarks.memory import extra_bytes_on, peak_memory, resident_bytes

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")


def take(mib: int) -> int:
    return int(np.ones(mib * MIB, dtype=np.uint8).sum())


@pytest.mark.parametrize("trim", [True, False])
def test_work_that_takes_64_mib_is_seen_though_it_gives_them_back(trim):
    total, memory = peak_memory(lambda: take(64), trim=trim)
    assert total == 64 * MIB
    assert 63 * MIB <= memory.extra <= 80 * MIB
    assert memory.peak == memory.held + memory.extra
    assert resident_bytes() < memory.peak - 40 * MIB


def test_an_earlier_peak_is_forgotten():
    take(256)
    assert peak_memory(lambda: take(16))[1].extra < 64 * MIB


def test_memory_of_the_cpu_as_a_device():
    assert 31 * MIB <= extra_bytes_on(torch.device("cpu"), lambda: take(32)) <= 64 * MIB


def test_held_is_what_psutil_reads():
    _, memory = peak_memory(lambda: None)
    assert memory.held == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
