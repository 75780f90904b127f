"""What a process knows of the others, from what torchrun and accelerate tell it."""

import os
import subprocess
import sys
import time

import pytest

from mmllm.runtime import processes
from mmllm.runtime.progress import Progress


def test_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.count(), processes.is_main()) == (0, 1, True)
    assert processes.share("abc") == ["a", "b", "c"]
    assert not processes.only_cpus()
    processes.wait()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_piece_of_work_is_somebodys(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    done = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        done += processes.share(range(5))
    assert sorted(done) == list(range(5))


@pytest.mark.parametrize(("rank", "told"), [("0", "count: 2/2 things"), ("1", "")])
def test_only_the_main_process_shows_progress(monkeypatch, capsys, rank, told):
    monkeypatch.setenv("RANK", rank)
    with Progress("count", 2, "things") as bar:
        bar.advance(2)
    printed = capsys.readouterr().err
    assert printed.startswith(told)
    assert bool(printed) is (rank == "0")


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do this in another way")


@linux
def test_memory_of_a_child_is_limited():
    code = (
        "from mmllm.runtime.processes import limit_memory\nlimit_memory(64 << 20)\nbytearray(16 << 20)\n"
        "try: bytearray(256 << 20)\nexcept MemoryError: print('limited')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "limited\n", done.stderr


@linux
def test_a_child_ends_with_its_parent():
    imports = "from mmllm.runtime.processes import end_with_parent; import time"
    child = f"{imports}; end_with_parent(); print('ready', flush=True); time.sleep(99)"
    start = f"p = subprocess.Popen([sys.executable, '-c', {child!r}])"
    parent = f"import subprocess, sys; {start}; print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    lines = sorted(process.stdout.readline().strip() for _ in range(2))  # either of the two may be first
    assert lines[1] == "ready"
    pid = int(lines[0])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False
