"""Reading through worker processes: bad items are named and listed, good ones come in order, nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmllm.errors import ConfigError, PartialFailure
from mmllm.video.opening import sample_uniform
from mmllm.video.quarantine import Quarantine, QuarantineConfig


def read_number(item: str) -> int:
    """Stands for a reader with every fault."""
    if item == "hang":
        time.sleep(600)
    if item == "loop":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exit":
        os._exit(3)
    if item == "slow":
        time.sleep(0.3)
        return -1
    return int(item)


def read_clip(path) -> np.ndarray:
    return sample_uniform(path, 4, size=32).frames


def test_good_items_in_order_and_bad_ones_listed():
    items = ["0", "hang", "slow", "3", "crash", "x", "6", "loop", "exit", *map(str, range(9, 30))]
    reading = Quarantine(read_number, QuarantineConfig(workers=2, deadline_s=1.5))
    results = dict(reading.results(items))
    assert list(results) == [0, 2, 3, 6, *range(9, 30)]
    assert results == {0: 0, 2: -1, 3: 3, 6: 6, **{i: i for i in range(9, 30)}}
    assert [(failure.number, failure.name, failure.error) for failure in reading.failures] == [
        (1, "hang", "TimedOut"),
        (4, "crash", "Crashed"),
        (5, "x", "ValueError"),
        (7, "loop", "TimedOut"),
        (8, "exit", "Crashed"),
    ]
    report = reading.report().splitlines()
    assert report[0] == "25 of 30 items read, 5 set aside"
    assert report[3] == "  x: ValueError: invalid literal for int() with base 10: 'x'"
    with pytest.raises(PartialFailure) as raised:
        reading.raise_if_any()
    assert raised.value.exit_code == 3
    assert len(reading.rows()) == 5


def test_videos(b_frames, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    reading = Quarantine(read_clip, QuarantineConfig(workers=1))
    results = list(reading.results([b_frames, bad, tmp_path / "gone.mp4", b_frames]))
    assert [number for number, _ in results] == [0, 3]
    assert all(frames.shape == (4, 32, 64, 3) and frames.std() > 10 for _, frames in results)
    assert [failure.error for failure in reading.failures] == ["VideoOpenError"] * 2
    assert str(bad) in reading.report()


def test_nothing_at_all_and_items_taken_only_as_needed():
    reading = Quarantine(read_number, QuarantineConfig(workers=1, ahead=1))
    assert list(reading.results([])) == []
    taken = []
    results = reading.results(str(taken.append(i) or i) for i in range(100))
    assert next(results) == (0, 0)
    assert len(taken) <= 4
    results.close()
    reading.raise_if_any()


def test_workers_end_with_the_reading():
    reading = Quarantine(pid_of, QuarantineConfig(workers=2))
    results = reading.results(range(10))
    _, pid = next(results)
    os.kill(pid, 0)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def pid_of(_) -> int:
    return os.getpid()


CALLER = """
import os, sys, time
from mmllm.video.quarantine import Quarantine, QuarantineConfig

def read(item):
    if item:
        while True:
            pass
    return os.getpid()

if __name__ == "__main__":
    for _, pid in Quarantine(read, QuarantineConfig(workers=1, ahead=1)).results([0, 1]):
        print(pid, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a busy child with its parent")
def test_busy_workers_end_when_the_caller_is_killed(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    root = os.getcwd()
    caller = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    pid = int(caller.stdout.readline())
    time.sleep(0.3)  # the worker now loops
    caller.kill()
    caller.wait()
    caller.stdout.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or " Z " in open(f"/proc/{pid}/stat").read():  # noqa: SIM115
            return
        time.sleep(0.1)
    pytest.fail("a worker outlived its caller")


def test_impossible_configurations():
    for fields in ({"workers": 0}, {"deadline_s": 0.0}, {"ahead": 0}, {"start_s": -1.0}):
        with pytest.raises(ConfigError):
            QuarantineConfig(**fields)
