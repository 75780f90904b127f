"""What holds of every way of serving: nothing is lost, queues are as theory says, budgets and memory are kept."""

import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest

from mmllm.errors import ConfigError, InputError
from mmllm.simulation.costs import Costs
from mmllm.simulation.policies import RULES, Policy
from mmllm.simulation.report import alone_s, report
from mmllm.simulation.simulation import ServingConfig, simulate
from mmllm.simulation.workload import Request, WorkloadConfig, requests_of

COSTS = Costs(
    decode_s=0.05, encode_s=0.05, step_s=0.004, token_s=1e-4, cached_s=1e-7, kv_bytes=1000, swap_bytes_s=1e9,
    swap_call_s=1e-4, link_bytes_s=1e8,
)  # fmt: skip
WAYS = {
    **{name: ServingConfig(policy=Policy(name=name)) for name in RULES},
    "swap": ServingConfig(memory=900),
    "recompute": ServingConfig(memory=900, leaving="recompute"),
    "two machines": ServingConfig(readers=1, writers=1),
    "five machines": ServingConfig(readers=2, writers=3, decoders=2),
}
REQUESTS = requests_of(WorkloadConfig(requests=400, urgent=0.2, deadline_s=2.0))


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_each_request_is_answered_once_and_every_token_is_counted(config):
    outcome = simulate(REQUESTS, COSTS, config)
    assert Counter(job.number for job in outcome.jobs) == Counter(range(len(REQUESTS)))
    for job in outcome.jobs:
        assert len(job.token_times_s) == job.request.answer_tokens
        assert job.request.at_s <= job.ready_s or config.readers
        assert job.token_times_s == sorted(job.token_times_s)
        assert job.token_times_s[0] - job.request.at_s > 0
    videos = Counter(job.request.video for job in outcome.jobs)
    prompts = sum(job.prefix == 0 for job in outcome.jobs)  # at least one reads each video
    assert prompts >= len(videos)
    read = sum(r.question_tokens + r.answer_tokens - 1 for r in REQUESTS) + prompts * REQUESTS[0].video_tokens
    assert sum(step.tokens for machine in outcome.steps for step in machine) == read + outcome.repeated


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_machines_do_one_step_after_another(config):
    for machine in simulate(REQUESTS, COSTS, config).steps:
        assert all(before.end_s <= after.begin_s + 1e-9 for before, after in itertools.pairwise(machine))
        assert all(step.tokens > 0 for step in machine)


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_littles_law(config):
    """The mean number of requests inside is their rate times their mean time inside."""
    outcome = simulate(REQUESTS, COSTS, config)
    begins = [job.request.at_s for job in outcome.jobs]
    ends = [job.token_times_s[-1] for job in outcome.jobs]
    changes = sorted([(at, 1) for at in begins] + [(at, -1) for at in ends])
    inside = area = 0.0
    for (at, change), (until, _) in itertools.pairwise(changes):
        inside += change
        area += inside * (until - at)
    span = max(ends) - min(begins)
    rate, time_inside = len(begins) / span, np.mean(np.subtract(ends, begins))
    assert area / span == pytest.approx(rate * time_inside, rel=1e-6)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_theory_says(load):
    """M/D/1: constant service, arrivals at random: the mean wait is load * service / (2 (1 - load))."""
    service = 1.0
    costs = Costs(step_s=service, token_s=0.0)
    config = WorkloadConfig(requests=40_000, per_s=load / service, new=1.0, answer_tokens=1)
    requests = [Request(**{**vars(r), "answer_tokens": 1}) for r in requests_of(config)]
    outcome = simulate(requests, costs, ServingConfig(policy=Policy(name="one")))
    waits = [job.token_times_s[-1] - job.request.at_s - service for job in outcome.jobs]
    assert np.mean(waits) == pytest.approx(load * service / (2 * (1 - load)), rel=0.08)


def test_one_at_a_time_with_answers_of_different_length():
    """M/G/1: the mean wait is rate * mean square of the service / (2 (1 - load))."""
    costs = Costs(step_s=0.1, token_s=0.0)
    requests = requests_of(WorkloadConfig(requests=20_000, per_s=0.4, new=1.0, answer_tokens=15))
    outcome = simulate(requests, costs, ServingConfig(policy=Policy(name="one")))
    service = np.array([0.1 * r.answer_tokens for r in requests])
    theory = 0.4 * np.mean(service**2) / (2 * (1 - 0.4 * service.mean()))
    waits = [job.token_times_s[-1] - job.request.at_s - 0.1 * job.request.answer_tokens for job in outcome.jobs]
    assert np.mean(waits) == pytest.approx(theory, rel=0.08)


@pytest.mark.parametrize("budget", [16, 64, 256])
def test_splitfuse_fills_its_budget_and_skips_nobody(budget):
    (steps,) = simulate(REQUESTS, COSTS, ServingConfig(policy=Policy(budget=budget))).steps
    assert all(step.tokens <= budget for step in steps)
    assert all(step.wrote >= step.writing for step in steps)
    assert all(step.tokens == min(budget, step.writing + step.waiting) for step in steps)


def test_pieces_of_prompts_shorten_the_gaps():
    gaps = {
        name: report(simulate(REQUESTS, COSTS, WAYS[name]), COSTS)["gap"]["p99"]
        for name in ("one", "prefill-first", "splitfuse", "two machines")
    }
    small = report(simulate(REQUESTS, COSTS, ServingConfig(policy=Policy(budget=64))), COSTS)["gap"]["p99"]
    assert gaps["one"] < small < gaps["splitfuse"] <= gaps["prefill-first"]
    assert gaps["two machines"] < gaps["splitfuse"]


def test_joining_at_each_token_beats_waiting_for_the_longest_answer():
    waits = {name: report(simulate(REQUESTS, COSTS, WAYS[name]), COSTS)["first_token"]["p95"] for name in RULES}
    assert waits["prefill-first"] < waits["batch"] < waits["one"]


def test_memory_is_kept_and_urgent_requests_stay():
    crowded = [Request(at_s=0.001 * i, video="v", video_tokens=0, question_tokens=100, answer_tokens=50,
                       priority=int(i >= 8)) for i in range(12)]  # fmt: skip
    for leaving in ("swap", "recompute"):
        outcome = simulate(crowded, COSTS, ServingConfig(memory=700, leaving=leaving))
        assert outcome.most_held <= 700
        assert outcome.departures > 0
        ends = {job.number: job.token_times_s[-1] for job in outcome.jobs}
        assert max(ends[i] for i in range(8, 12)) < max(ends[i] for i in range(8))
        assert (outcome.repeated > 0) == (leaving == "recompute")
    free = simulate(crowded, COSTS, ServingConfig())
    assert (free.departures, free.repeated) == (0, 0)


def test_a_reader_knows_a_video_once_it_was_read():
    asked = [Request(at_s=0, video="a", video_tokens=1000, question_tokens=20, answer_tokens=4)] * 3
    outcome = simulate(asked, Costs(step_s=0.02, token_s=0.001), ServingConfig(readers=2, writers=1))
    first = [job.token_times_s[0] for job in outcome.jobs]
    assert first == pytest.approx([1.04, 1.04, 1.08])  # two readers begin at once; the third request comes after them
    assert [job.prefix for job in outcome.jobs] == [0, 0, 1000]


def test_readers_take_urgent_requests_first():
    asked = [Request(at_s=0, video=str(i), video_tokens=100, question_tokens=10, answer_tokens=2, priority=int(i == 3))
             for i in range(4)]  # fmt: skip
    outcome = simulate(asked, Costs(), ServingConfig(readers=1, writers=1))
    first = {job.number: job.token_times_s[0] for job in outcome.jobs}
    assert sorted(first, key=first.__getitem__) == [3, 0, 1, 2]
    late = [Request(**{**vars(request), "at_s": 0.01 * i}) for i, request in enumerate(asked)]
    first = {
        job.number: job.token_times_s[0] for job in simulate(late, Costs(), ServingConfig(readers=1, writers=1)).jobs
    }
    assert sorted(first, key=first.__getitem__) == [0, 3, 1, 2]


@pytest.mark.parametrize("name", ["one", "batch"])
def test_nobody_leaves_for_requests_that_would_not_start(name):
    asked = [Request(at_s=0.3 * (i > 0), video=str(i), video_tokens=80, question_tokens=20, answer_tokens=50,
                     priority=int(i > 0)) for i in range(9)]  # fmt: skip
    free, short = (
        simulate(asked, Costs(), ServingConfig(policy=Policy(name=name, size=2), memory=memory))
        for memory in (None, 400)
    )
    assert (short.departures, short.repeated) == (0, 0)
    assert [job.token_times_s for job in short.jobs] == [job.token_times_s for job in free.jobs]


@pytest.mark.parametrize("leaving", ["swap", "recompute"])
def test_nobody_starts_beside_a_batch_that_is_short_of_memory(leaving):
    asked = [Request(at_s=0, video=str(i), video_tokens=0, question_tokens=20, answer_tokens=50) for i in range(9)]
    config = ServingConfig(policy=Policy(name="batch", size=3), memory=100, leaving=leaving)
    outcome = simulate(asked, Costs(), config)
    assert outcome.departures > 0
    times = {job.number: job.token_times_s for job in outcome.jobs}
    for first in (0, 3):
        ended = max(times[number][-1] for number in range(first, first + 3))
        assert all(times[number][0] > ended for number in range(first + 3, 9))


def test_writers_apart_take_any_policy():
    for name in RULES:
        outcome = simulate(REQUESTS[:50], COSTS, ServingConfig(policy=Policy(name=name), readers=1, writers=2))
        assert all(job.done for job in outcome.jobs)


@pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)
def test_an_overload_takes_no_longer_for_each_request(config):
    asked = requests_of(WorkloadConfig(requests=4000, per_s=1000))
    begun = time.process_time()
    simulate(asked, COSTS, config)
    assert time.process_time() - begun < 10  # about a second; a walk over all that wait took half a minute


def test_a_request_that_is_alone_takes_what_the_formula_says():
    (request,) = requests_of(WorkloadConfig(requests=1))
    for name in RULES:
        (job,) = simulate([request], COSTS, ServingConfig(policy=Policy(name=name, budget=1000))).jobs
        assert job.token_times_s[-1] - request.at_s == pytest.approx(alone_s(job, COSTS))


def test_the_same_seed_gives_the_same_report():
    made = [
        json.dumps(report(simulate(requests_of(WorkloadConfig(requests=50, seed=3)), COSTS), COSTS)) for _ in range(2)
    ]
    assert made[0] == made[1]
    assert made[0] != json.dumps(report(simulate(requests_of(WorkloadConfig(requests=50, seed=4)), COSTS), COSTS))


def test_refusals():
    with pytest.raises(ConfigError, match="did you mean 'splitfuse'"):
        Policy(name="splitfuze")
    with pytest.raises(ConfigError, match="at least 1 of each"):
        ServingConfig(readers=1)
    with pytest.raises(ConfigError, match="readers and writers are apart"):
        ServingConfig(readers=1, writers=1, memory=10)
    with pytest.raises(InputError, match=r"request 0 needs \d+ positions, and the memory has 10"):
        simulate(REQUESTS, COSTS, ServingConfig(memory=10))
    for fields in ({"budget": 0}, {"size": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            Policy(**fields)
