"""What a simulation says: waiting times, throughput, and how busy the machines were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmllm.simulation.costs import Costs
from mmllm.simulation.simulation import Outcome

PERCENTILES = (50, 95, 99)


def report(outcome: Outcome, costs: Costs) -> dict[str, Any]:
    """Numbers about an outcome, as JSON values; times in seconds.

    Returns:
        `first_token` and `gap` (between tokens of an answer), each with p50, p95 and p99; `slowdown`: how many times as
        long as on an idle server that has to read the video (below 1 where its cache was kept), mean and most; requests
        and tokens a second; `busy`: share of the time for each machine; `deadlines_met`, None if there are none.
        Numbers over a time of zero, where nothing costs anything, are None.
    """
    jobs = outcome.jobs
    finished = max(job.token_times_s[-1] for job in jobs)
    begun = min(job.request.at_s for job in jobs)
    waits = [job.token_times_s[0] - job.request.at_s for job in jobs]
    gaps = [gap for job in jobs for gap in np.diff(job.token_times_s)]
    alone = [alone_s(job, costs) for job in jobs]
    slowdown = [
        (job.token_times_s[-1] - job.request.at_s) / own_s for job, own_s in zip(jobs, alone, strict=True) if own_s
    ]
    with_deadline = [job for job in jobs if job.request.deadline_s is not None]
    met = [job.token_times_s[-1] - job.request.at_s <= (job.request.deadline_s or 0.0) for job in with_deadline]
    tokens = sum(step.tokens for machine in outcome.steps for step in machine)
    span = finished - begun
    return {
        "requests": len(jobs),
        "requests_per_s": _over(len(jobs), span),
        "tokens": tokens,
        "tokens_per_s": _over(tokens, span),
        "first_token": _percentiles(waits),
        "gap": _percentiles(gaps),
        "slowdown": {
            "mean": float(np.mean(slowdown)) if slowdown else None,
            "most": float(np.max(slowdown)) if slowdown else None,
        },
        "deadlines_met": sum(met) / len(met) if met else None,
        "busy": [_over(sum(step.end_s - step.begin_s for step in machine), span) for machine in outcome.steps],
        "most_positions": outcome.most_held,
        "departures": outcome.departures,
        "repeated_tokens": outcome.repeated,
    }


def alone_s(job: Any, costs: Costs) -> float:
    """Seconds of a request on an idle server that kept nothing."""
    request = job.request
    prompt = request.video_tokens + request.question_tokens
    writing = (costs.step(1, prompt + number) for number in range(request.answer_tokens - 1))
    return costs.decode_s + costs.encode_s + costs.step(prompt, 0) + sum(writing)


def _over(amount: float, span_s: float) -> float | None:
    """An amount for each second; None of no time."""
    return amount / span_s if span_s else None


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """The percentiles of some seconds; None without any."""
    if not len(values):
        return {f"p{percent}": None for percent in PERCENTILES}
    return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTILES}
