"""What the LLM still knows of *when* if its cache holds less: every policy of the cache at several budgets.

    python benchmarks/context.py [--seeds 0 1 2] [--videos 12] [--json out.json]

The packaged model answers questions about rendered clips that it has not seen, under every registered policy that has
a budget, at 50, 25 and 12.5 % of the prompt's positions. `random` and `window` are what a policy has to beat. System
prompt, times and question stay in any case for the policies that can protect them.

Bytes are those of keys and values that are held when an answer ends, of all that were read. Tokens a second are those
of whole answers, with the reading of the prompt, on one thread; each is a ratio to the model without a policy in the
same turn. Policies that select or sparsify hold every key; what they save, they save in the attention alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.intervals import over_seeds_with_clips, turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns
from benchmarks.reducers import CLIP_SEED, FAMILIES, questions_by_clip
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, sample_iou
from mmllm.evaluation.run import Benchmark, answered
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.runtime.progress import Progress

BUDGETS = {"50": 0.5, "25": 0.25, "12_5": 0.125}
"""Share of the prompt's positions in %, as columns call it -> the share."""
Setting = Callable[[float, int], str]
"""A policy's settings for a share of so many positions."""


def _count(share: float, positions: int) -> int:
    return max(2, round(share * positions))


SETTINGS: dict[str, Setting] = {
    "random": lambda share, _: f"random:drawn={share / 2},recent={share / 2}",
    "window": lambda share, _: f"window:recent={share}",
    "streaming": lambda share, _: f"streaming:sinks=4,window={share}",
    "h2o": lambda share, _: f"h2o:heavy={share / 2},recent={share / 2}",
    "keyformer": lambda share, _: f"keyformer:budget={share}",
    "tokenselect": lambda share, count: f"tokenselect:sinks=4,local=4,top_k={max(1, _count(share, count) - 8)}",
    "tidal": lambda share, count: f"tidal:top_k={_count(share, count)},start=0,correction=1",
    "recycled": lambda share, _: f"recycled:top_k={share}",
    "doublesparse": lambda share, _: f"doublesparse:heavy={share},factor=4,dense_layers=0",
    "gemfilter": lambda share, count: f"gemfilter:top_k={_count(share, count)}",
    "lazyllm": lambda share, _: f"lazyllm:depths=0.3+0.6,keep={(1 + share) / 2}+{share}",
    "minference": lambda share, count: (
        f"minference:vertical={_count(share / 2, count)},slash={_count(share / 2, count)}"
    ),
}
"""In the order of the table. The budgets are those of the keys that an attention reads or holds."""
LEFT_OUT = {
    "full": "is the model without a policy",
    "tempscale": "has no budget",
    "razor": "needs a file of the heads of its LLM, see `mmllm calibrate`",
}


def variants(qa: VideoAnswering, positions: int, seed: int) -> dict[str, VideoAnswering]:
    """The model under each policy that fits it, as `policy budget`; the first has none."""
    made = {"everything": qa}
    for name in fitting(qa, positions):
        for budget, share in BUDGETS.items():
            text = SETTINGS[name](share, positions)
            seeded = f"{text},seed={seed}" if name in ("random", "keyformer") else text
            made[f"{name} {budget}"] = qa.with_context(seeded)
    return made


def fitting(qa: VideoAnswering, positions: int) -> list[str]:
    """The registered policies that have a budget and fit the model, in the order of the table."""
    names = []
    for name, setting in SETTINGS.items():
        if name not in registry.parts("context"):
            continue
        try:
            qa.with_context(setting(0.5, positions))
        except ConfigError as problem:
            print(f"{name} is left out: {problem}")
            continue
        names.append(name)
    return names


def answers(qa: VideoAnswering, benchmark: Benchmark, positions: int, seed: int) -> dict[str, dict[str, Any]]:
    """For each variant: the IoU of each clip in %, and the share of bytes that are held, in %."""
    asked, by_clip = variants(qa, positions, seed), questions_by_clip(benchmark, FAMILIES)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    held: dict[str, list[float]] = {name: [] for name in asked}
    with Progress(f"ask about clips of seed {seed}", len(by_clip), "clips") as bar:
        for clip, questions in by_clip.items():
            encoded = qa.encode_video(clip)
            for name, variant in asked.items():
                samples[name] += answered(variant, variant.encode_again(encoded), "", questions, {})
            bar.advance()
    for name, rows in samples.items():
        counts = [sample.context for sample in rows if sample.context]
        held[name] = [100 * row["bytes_needed"] / row["bytes_dense"] for row in counts] or [100.0]
    scores = {
        name: by_video([sample for sample in rows if sample.truth_spans], sample_iou) for name, rows in samples.items()
    }
    return {
        name: {"iou": [100 * score for score in scores[name].values()], "held": statistics.fmean(held[name])}
        for name in asked
    }


def speeds(qa: VideoAnswering, benchmark: Benchmark, positions: int, rounds: int) -> dict[str, dict[str, Number]]:
    """Tokens a second of whole answers to the questions about one clip, and their ratio to those without a policy."""
    clip, questions = next(iter(questions_by_clip(benchmark, FAMILIES).items()))
    texts, asked = [question.question for question in questions], variants(qa, positions, 0)
    encoded = {name: variant.encode_again(qa.encode_video(clip)) for name, variant in asked.items()}
    tokens: dict[str, int] = {}

    def ask(name: str) -> None:
        encoded[name].prefix.kept = None
        told = asked[name].ask_all(encoded[name], texts)
        tokenizer = qa.processor.tokenizer
        tokens[name] = sum(len(tokenizer(answer.raw, add_special_tokens=False)["input_ids"]) for answer in told)

    for name in asked:
        ask(name)
    seconds = in_turns({name: (lambda name=name: ask(name)) for name in asked}, rounds)
    rates = {name: [tokens[name] / each for each in own] for name, own in seconds.items()}
    return {
        name: {"tokens_s": statistics.median(own), "speed_ratio": turn_ratio(own, rates["everything"])}
        for name, own in rates.items()
    }


def fill(
    results: Results, runs: Sequence[Mapping[str, dict[str, Any]]], rates: Mapping[str, dict[str, Number]]
) -> None:
    """A row for each policy: mIoU, bytes and speed at each budget."""
    labels: dict[str, dict[str, str]] = {"none": dict.fromkeys(BUDGETS, "everything")}
    names = dict.fromkeys(name.split()[0] for name in rates if name != "everything")
    labels |= {f"`{name}`": {budget: f"{name} {budget}" for budget in BUDGETS} for name in names}
    for label, by_budget in labels.items():
        numbers: dict[str, Number] = {}
        for budget, name in by_budget.items():
            numbers[f"iou_{budget}_percent"] = over_seeds_with_clips([run[name]["iou"] for run in runs])
            numbers[f"held_{budget}_percent"] = statistics.fmean(run[name]["held"] for run in runs)
        quarter = rates[by_budget["25"]]
        results.add("context-budgets", {"policy": label}, {**numbers, **quarter})


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks the model, writes the results, and prints the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=12, help="clips of each seed")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    parser.add_argument("--model", default=DEFAULT_SMALL, help="folder, preset or hub id of the model that is asked")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    results.note = f"{options.videos} clips of each of {len(options.seeds)} seeds"
    qa = VideoQA.from_pretrained(options.model)
    benchmarks = [fresh_benchmark(CLIP_SEED + seed, videos=options.videos, workers=1) for seed in options.seeds]
    clip = next(iter(questions_by_clip(benchmarks[0], FAMILIES)))
    positions = len(qa.read_opening(qa.encode_video(clip)).ids)
    rates = speeds(qa, benchmarks[0], positions, options.rounds)
    runs = [answers(qa, benchmark, positions, seed) for seed, benchmark in zip(options.seeds, benchmarks, strict=True)]
    fill(results, runs, rates)
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
