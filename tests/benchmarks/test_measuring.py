"""benchmarks/measuring.py: turns alternate, warm-up does not count, and both clocks tell work from waiting."""

import time

import pytest
import torch

from benchmarks.measuring import in_turns, processor_s, quickest_s, seconds_on, timed, wall_s


def order(**options):
    """Which candidate was run when, and what was kept."""
    run = []
    works = {name: lambda name=name: run.append(name) or f"{name}{run.count(name)}" for name in "abc"}
    kept = in_turns(works, 2, take=lambda work: work(), **options)
    return "".join(run), kept


def test_candidates_take_turns_and_the_first_round_does_not_count():
    run, kept = order()
    assert run == "abcabcabc"
    assert kept == {"a": ["a2", "a3"], "b": ["b2", "b3"], "c": ["c2", "c3"]}


def test_turns_may_go_back():
    assert order(and_back=True)[0] == "cbaabccba"


def test_warm_up_can_be_left_out():
    run, kept = order(warm_up=0)
    assert run == "abcabc"
    assert kept["a"] == ["a1", "a2"]


def busy(seconds: float) -> None:
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass


def test_waiting_takes_time_on_the_wall_but_not_of_the_processor():
    assert wall_s(lambda: time.sleep(0.05)) >= 0.05
    assert processor_s(lambda: time.sleep(0.05)) < 0.04


def test_work_takes_time_of_the_processor_and_gives_its_result():
    assert 0.02 <= processor_s(lambda: busy(0.02)) < 0.2
    result, seconds = timed(lambda: busy(0.02) or "done")
    assert result == "done"
    assert seconds >= 0.02
    assert seconds_on(torch.device("cpu"))(lambda: busy(0.02)) >= 0.02


def test_the_quickest_of_several_times_is_told():
    lasting = iter([0.05, 0.01, 0.05])
    assert 0.01 <= quickest_s(lambda: busy(next(lasting))) < 0.045
    with pytest.raises(StopIteration):
        next(lasting)
