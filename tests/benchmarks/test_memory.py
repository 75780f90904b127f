"""benchmarks/memory.py: the peak of known work, in a process of its own, which has no freed memory to use again."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
SETUP = """
import numpy as np, torch
from benchmarks.memory import extra_bytes_on, peak_memory, resident_bytes
MIB = 2**20
take = lambda mib: int(np.ones(mib * MIB, dtype=np.uint8).sum())
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")


def printed(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", SETUP + code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("trim", [True, False])
def test_work_that_takes_64_mib_is_seen_though_it_gives_them_back(trim):
    total, held, peak, extra, after = printed(
        f"total, memory = peak_memory(lambda: take(64), trim={trim})\n"
        "print(total, memory.held, memory.peak, memory.extra, resident_bytes())"
    )
    assert total == 64 * MIB
    assert 63 * MIB <= extra <= 80 * MIB
    assert peak == held + extra
    assert after < peak - 40 * MIB


def test_an_earlier_peak_is_forgotten():
    assert printed("take(256)\nprint(peak_memory(lambda: take(16))[1].extra)")[0] < 64 * MIB


def test_memory_of_the_cpu_as_a_device():
    (extra,) = printed("print(extra_bytes_on(torch.device('cpu'), lambda: take(32)))")
    assert 31 * MIB <= extra <= 64 * MIB


def test_held_is_what_psutil_reads():
    held, read = printed("import psutil\nprint(peak_memory(lambda: None)[1].held, psutil.Process().memory_info().rss)")
    assert held == pytest.approx(read, rel=0.05)
