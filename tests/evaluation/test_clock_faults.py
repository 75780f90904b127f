"""Planted faults are found in what a stub feeds and in what it answers, alone and together, and none where none is."""

import itertools
from pathlib import Path

import pytest
from clock_stub import StubBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from mmllm.evaluation import clock_check
from mmllm.evaluation.clock_check import check_backend
from mmllm.evaluation.clock_requests import CASES, requests

PLANTED = ("index over fps", "sampled fps", "dropped offset", "whole seconds", "frames without times")
OTHERS = ("ignored times", "dropped start", "stretched range", "first video's times", "wrong constant")


@pytest.fixture(autouse=True)
def _no_files(monkeypatch):
    monkeypatch.setattr(clock_check, "render", lambda clip: None)  # a stub does not read files


def report(*planted, clips=2, ask=True, **options):
    count = clips * len(CASES)
    wanted = requests(Path("nowhere"), clips)
    return check_backend(StubBackend(*planted, **options), wanted, count=count, ask=ask, progress=False)


@pytest.mark.parametrize("group", [1, 2])
def test_right_times_have_no_fault(group):
    found = report(group=group, decimals=1)
    assert found.healthy
    assert found.faults == {}
    assert (found.answers.faults, found.answers.undecided) == ({}, ())
    assert all(abs(seen.errors_s).max() <= 0.051 for seen in found.observations)


@pytest.mark.parametrize("fault", PLANTED + OTHERS)
@pytest.mark.parametrize("group", [1, 2])
def test_each_planted_fault_is_found_in_fed_times(fault, group):
    found = report(fault, ask=False, group=group)
    assert set(found.fed["time text"].faults) == {fault}
    assert not found.healthy
    assert found.unexplained == ()


@pytest.mark.parametrize("fault", PLANTED + OTHERS)
def test_each_planted_fault_is_found_in_noisy_answers_alone(fault):
    found = report(fault, clips=6, shows=False, noise_s=0.3, blunders=0.1)
    assert found.fed == {}
    assert found.answers.sees_clock
    assert set(found.answers.faults) == {fault}


TOGETHER = ("sampled fps", "whole seconds", "frames without times", "dropped start", "ignored times")
POSSIBLE_TOGETHER = st.tuples(
    st.sampled_from(("", "index over fps", "dropped offset")), st.sets(st.sampled_from(TOGETHER), max_size=2)
)


@settings(max_examples=25)
@given(planted=POSSIBLE_TOGETHER, group=st.sampled_from([1, 2]), decimals=st.sampled_from([None, 1, 2]))
def test_faults_together_are_found_in_fed_times(planted, group, decimals):
    planted = planted[1] | ({planted[0]} - {""})
    if "whole seconds" in planted:
        decimals = None
    found = report(*planted, ask=False, group=group, decimals=decimals)
    assert set(found.fed["time text"].faults) == planted
    assert found.unexplained == ()


@settings(max_examples=8)
@given(fault=st.sampled_from(PLANTED), seed=st.integers(0, 10_000), noise_s=st.floats(0.0, 0.4))
def test_answers_tell_the_fault_whatever_the_noise(fault, seed, noise_s):
    found = report(fault, clips=6, shows=False, noise_s=noise_s, blunders=0.08, seed=seed)
    assert set(found.answers.faults) == {fault}


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), noise_s=st.floats(0.0, 0.8))
def test_noise_alone_is_no_fault(seed, noise_s):
    found = report(clips=6, shows=False, noise_s=noise_s, blunders=0.1, seed=seed)
    assert found.answers.sees_clock
    assert found.answers.faults == {}


def test_a_model_that_does_not_look_tells_nothing_but_by_chance():
    """One in a hundred seems to follow the events: so many the rule allows, and more than 3 of 60 are rare (0.3 %)."""
    blind = [
        report(*planted, clips=4, shows=False, blind=True, seed=seed).answers
        for seed, planted in zip(range(60), itertools.cycle([(), *((fault,) for fault in PLANTED)]), strict=False)
    ]
    told_nothing = [found for found in blind if not found.sees_clock]
    assert len(told_nothing) >= len(blind) - 3
    assert all("does not see the clock" in found.reason and found.faults == {} for found in told_nothing)
