"""Several runs at a time: their results in order, and processes that end with the benchmark."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import os, pathlib, sys, time

from benchmarks.jobs import results_of


def work(name, seed):
    pathlib.Path(sys.argv[1], f"{name}-{os.getpid()}").touch()
    time.sleep(float(sys.argv[2]))
    return name, seed


if __name__ == "__main__":
    print(list(results_of(work, [("a", 0), ("b", 1), ("a", 2)], int(sys.argv[3]))))
"""


def started(tmp_path, seconds, jobs):
    script = tmp_path / "runs.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "begun").mkdir()
    command = [sys.executable, str(script), str(tmp_path / "begun"), str(seconds), str(jobs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_are_in_order(tmp_path, jobs):
    output, _ = started(tmp_path, 0, jobs).communicate(timeout=120)
    assert output.strip() == "[('a', 0), ('b', 1), ('a', 2)]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it takes half a second more")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_runs_end_with_the_benchmark(tmp_path, end):
    benchmark = started(tmp_path, 600, 2)
    until = time.monotonic() + 120
    while len(runs := list((tmp_path / "begun").iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    workers = [psutil.Process(int(run.name.split("-")[1])) for run in runs]
    assert all(worker.is_running() for worker in workers)
    benchmark.send_signal(end)
    benchmark.wait(60)
    assert psutil.wait_procs(workers, timeout=30)[1] == []
