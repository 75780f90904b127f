"""What decoding with fewer layers, widths and positions loses and saves, before and after its training, over seeds.

    python benchmarks/other_laws.py [--seeds 3] [--videos 120] [--steps 300] [--json out.json]

Trainings are those of benchmarks/drafts.py. The questions of held-out clips are asked greedily, and through each method
with its weights as they were drawn and as they were trained. Of Duo-LLM the losses of its routers are set beside those
of the oracle, which tries all routes, and of drawn routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.asked import GREEDY, Asked
from benchmarks.decoding import asked
from benchmarks.drafts import add_options, render_clips, run_comparison, states_of
from benchmarks.guesses import rows_of
from benchmarks.intervals import Interval
from benchmarks.results import Results, option_parser
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.draft_files import load_draft
from mmllm.decoding.duo_llm import Siblings
from mmllm.decoding.route_losses import route_losses
from mmllm.decoding.routes import all_routes, best_routes
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.run import Benchmark
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.interfaces import Decoding

METHODS = ("hamburger", "skip-decode:tokens=4", "duo-llm:random_steps=100")
SETTINGS: dict[str, dict[str, Any]] = {"hamburger": {"confidence": 0.5}}
"""Of the decoding methods, where they are not the defaults."""
WORK = {"skip-decode": ("layer_passes", "all_layer_passes"), "duo-llm": ("ffn_width", "all_big_width")}
"""Counters of what was computed and of what the whole model would compute, by method."""


def method_of(name: str, folder: Path) -> Decoding:
    """The decoding method with the weights in a folder."""
    return decoding_of({"name": name, "draft": str(folder), **SETTINGS.get(name, {})})


def numbers_of(name: str, result: Asked, greedy: Asked, counts: DecodingCounts) -> dict[str, float]:
    """The numbers of one seed."""
    same = sum(a == b for a, b in zip(result.answers, greedy.answers, strict=True))
    if name in WORK:
        computed, whole = (counts.extra[counter] for counter in WORK[name])
    else:  # a position for each step behind the prompt
        computed, whole = counts.rounds, counts.new_tokens - len(greedy.answers)
    return {
        "same_percent": 100 * same / len(greedy.answers),
        "miou_percent": result.miou,
        "tokens_per_pass": counts.tokens_per_pass,
        "work_percent": 100 * computed / max(1, whole),
    }


def over_seeds(found: Sequence[dict[str, float]]) -> dict[str, Interval]:
    """Means of several seeds between the least and the largest."""
    return {
        name: Interval(sum(values) / len(values), min(values), max(values), tuple(values))
        for name in found[0]
        for values in [[numbers[name] for numbers in found]]
    }


@torch.no_grad()
def routes_of(qa: VideoQA, benchmark: Benchmark, siblings: Siblings, seed: int, most_big: int = 1) -> dict[str, float]:
    """Mean loss in nats of the next token along routes of several origins."""
    routes = all_routes(len(siblings.small))
    losses, own = [], []
    for row in rows_of(qa, benchmark):
        every, chosen = route_losses(siblings, row, routes)
        losses.append(every)
        own.append(chosen)
    every = torch.cat(losses)  # tokens, routes
    drawn = torch.randint(len(routes), (100, len(every)), generator=torch.Generator().manual_seed(seed))
    means = every.gather(1, drawn.T).mean(dim=0)
    within = best_routes(every, routes, most_big)
    return {
        "all_big_nats": float(every[:, -1].mean()),
        "oracle_nats": float(every.amin(dim=1).mean()),
        "oracle_one_big_nats": float(every.gather(1, within[:, None]).mean()),
        "router_nats": float(torch.cat(own).mean()),
        "best_drawn_nats": float(means.min()),
        "mean_drawn_nats": float(means.mean()),
    }


def compare(results: Results, options: Any, work: Path) -> None:
    """Rows of all methods, before and after training."""
    qa = VideoQA.from_pretrained(DEFAULT_SMALL)
    assert isinstance(qa, VideoQA)
    render_clips(options, work)
    benchmark = fresh_benchmark(options.seed, videos=options.held_out, workers=1)
    greedy: list[float] = []
    for draft in options.drafts:
        name = draft.partition(":")[0]
        found: dict[str, list[dict[str, float]]] = {}
        routes = []
        for seed in range(options.seeds):
            folders = states_of(draft, seed, options, qa, work)
            methods = {state: method_of(name, folders[state]) for state in ("untrained", "trained")}
            answers = asked(qa, benchmark, {GREEDY: None, **methods})
            greedy.append(answers[GREEDY].miou)
            for state, method in methods.items():
                numbers = numbers_of(name, answers[state], answers[GREEDY], method.total)
                found.setdefault(state, []).append(numbers)
            if name == "duo-llm":
                siblings = load_draft(name, folders["trained"], qa.model)
                assert isinstance(siblings, Siblings)
                routes.append(routes_of(qa, benchmark, siblings, seed))
        for state, seeds in found.items():
            results.add("other_laws", {"method": draft, "training": state, "seeds": str(len(seeds))}, over_seeds(seeds))
        if routes:
            results.add("routes", {"method": draft}, over_seeds(routes))
    plain = {"same_percent": 100.0, "miou_percent": greedy[0], "tokens_per_pass": 1.0, "work_percent": 100.0}
    results.add("other_laws", {"method": GREEDY, "training": "-", "seeds": "1"}, over_seeds([plain]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all weights, runs the comparison and prints it."""
    parser = option_parser(__doc__)
    add_options(parser, METHODS)
    run_comparison(parser, arguments, __file__, compare)


if __name__ == "__main__":
    main()
