"""What a process knows of the others, from what torchrun and accelerate tell it."""

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
