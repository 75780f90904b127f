"""`mmllm simulate-serving`: what a way of serving videos would do to waiting times, before there are machines."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mmllm.errors import InputError
from mmllm.simulation.costs import Costs
from mmllm.simulation.policies import RULES, Policy
from mmllm.simulation.workload import WorkloadConfig

WorkloadFlags = Annotated[WorkloadConfig, tyro.conf.arg(name="")]
"""The flags of a workload that is made from a seed."""


def simulate_serving(
    workload: Annotated[Path | None, tyro.conf.Positional] = None,
    made: WorkloadFlags = WorkloadConfig(),  # noqa: B008 - it is frozen
    costs: Path | None = None,
    policies: tuple[str, ...] = tuple(RULES),
    budget: int = 256,
    size: int = 8,
    decoders: int = 2,
    memory: int | None = None,
    leaving: Literal["swap", "recompute"] = "swap",
    readers: int = 0,
    writers: int = 0,
    overlap: bool = False,
    json: bool = False,
) -> None:
    """Simulate how requests about videos are served: waiting times, throughput and memory of each policy.

    Args:
        workload: lines of JSON with at_s, video, video_tokens, question_tokens, answer_tokens, and if wanted priority
            and deadline_s; by default requests are made from a seed.
        made: requests that are made.
        costs: JSON file with the fields of `mmllm.simulation.costs.Costs`; by default roughly those of the packaged
            model on two cores.
        policies: one: one request at a time; batch: some start together; prefill-first: prompts whole, answers
            together; splitfuse: pieces of prompts beside everybody's next token.
        budget: most tokens of a step of splitfuse.
        size: most requests of a batch.
        decoders: processes that decode.
        memory: positions that the LLM's memory holds beside kept videos; by default no limit.
        leaving: what happens where memory is short: copied out and back, or read once more.
        readers: machines that only read prompts; with --writers, machines that only write. Both work on prompts and
            answers as they come, so no policy is asked.
        writers: machines that only write.
        overlap: computing overlaps with communication, if the costs have message_s.
        json: print one JSON object.
    """
    from mmllm.fields import from_mapping
    from mmllm.runtime.files import read_json
    from mmllm.simulation.report import report
    from mmllm.simulation.simulation import ServingConfig, simulate
    from mmllm.simulation.workload import read_requests, requests_of

    remedy = "write the fields of mmllm.simulation.costs.Costs"
    price = PACKAGED if costs is None else from_mapping(Costs, read_json(costs, remedy))
    if overlap and not price.message_s:
        raise InputError("--overlap needs costs with message_s: nothing is communicated")
    price = replace(price, overlap=overlap)
    if workload is not None and made != WorkloadConfig():
        raise InputError(f"{workload} has the requests: leave the flags of made ones out")
    requests = requests_of(made) if workload is None else read_requests(workload)
    if not policies:
        raise InputError(f"--policies needs one of {', '.join(RULES)}, or several")
    asked = [Policy(name=name, budget=budget, size=size) for name in policies]
    if readers:
        asked = [Policy(name="prefill-first")]
    reports: dict[str, Any] = {}
    for policy in asked:
        config = ServingConfig(
            policy=policy, decoders=decoders, memory=memory, leaving=leaving, readers=readers, writers=writers
        )
        label = f"{readers} + {writers}" if readers else policy.name
        reports[label] = report(simulate(requests, price, config), price)
    if json:
        print(json_text.dumps(reports, indent=2))
    else:
        _show(reports)


PACKAGED = Costs(
    decode_s=0.1, encode_s=0.06, step_s=0.004, token_s=0.0001, cached_s=1e-7, kv_bytes=2 * 3 * 96 * 4,
    swap_bytes_s=5e9, swap_call_s=2e-5, link_bytes_s=1e9,
)  # fmt: skip
"""Seconds of the packaged model on a core: a minute of video, a step, a token."""


def _show(reports: dict[str, Any]) -> None:
    """Prints a table with a column for each way of serving."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *reports, box=None)
    for title, cell in ROWS.items():
        table.add_row(title, *(cell(row) for row in reports.values()))
    Console().print(table)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "requests a second": lambda row: _number(row["requests_per_s"], ".2f"),
    "first token, half within": lambda row: _ms(row["first_token"]["p50"]),
    "first token, 95 % within": lambda row: _ms(row["first_token"]["p95"]),
    "between tokens, 99 % within": lambda row: _ms(row["gap"]["p99"]),
    "times as long as alone with a new video": lambda row: (
        f"{_number(row['slowdown']['mean'], '.2f')}, most {_number(row['slowdown']['most'], '.1f')}"
    ),
    "deadlines met": lambda row: "-" if row["deadlines_met"] is None else f"{row['deadlines_met']:.0%}",
    "the machines work": lambda row: ", ".join(_number(share, ".0%") for share in row["busy"]),
    "most positions held": lambda row: f"{row['most_positions']:,}",
    "times that one left the memory": lambda row: f"{row['departures']:,}",
    "tokens read once more": lambda row: f"{row['repeated_tokens']:,}",
}
