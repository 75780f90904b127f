"""What pruning does to *when*: answers of a model with every reducer at several budgets.

    python benchmarks/when.py [--seeds 0 1 2] [--videos 24] [--only answers memory] [--json out.json]
    python benchmarks/when.py --model NAME --data FILE --videos-dir DIR [--durations FILE]

The model saw every token when it was trained. The packaged one is asked about clips that are rendered anew for each
seed. With `--data`, any published or hosted model is asked about the clips of a benchmark, such as Charades-STA,
ActivityNet Captions or QVHighlights: each seed has clips of its own.

`answers` asks, and measures the time to the first word; `memory` measures what the process holds until then, at most.
Scores are given for all events, for short, middle and long ones (thirds by their share of the clip), and for clips in
which more or less changes (halves). A reducer has the settings that it says itself for a share of the tokens; one
inside the LLM drops them early, so only its first layers read them all.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.intervals import middle, over_seeds_with_clips, turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import Work, in_turns, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.reducers import CLIP_SEED, FAMILIES, SCORES, blind, questions_by_clip
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.datasets.folder_rates import folder_rates
from mmllm.errors import InputError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, sample_iou, text_match
from mmllm.evaluation.run import Benchmark, answered, read_benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.pruning.needs import where_it_acts
from mmllm.pruning.video_budget import change_of
from mmllm.runtime.progress import Progress
from mmllm.tuning.settings import ReducerSettings

BUDGETS = {"50": 0.5, "25": 0.25, "12_5": 0.125, "5": 0.05}
"""Share of the tokens in %, as columns call it -> the share. Of 16 tokens a frame, 5 % is one."""
REDUCERS = (
    "uniform", "random", "pool", "fastervlm", "vispruner", "visionzip", "divprune", "cdpruner:relevance=words",
    "cdpruner:relevance=none", "vidcom2", "flashvid", "holitom", "fastvid", "evs", "video_budget", "fastv",
    "fastv:merge=true", "pyramiddrop", "pyramiddrop:positions=keep", "sparsevlm", "sparsevlm:positions=keep", "dart",
)  # fmt: skip
"""In the order of the tables; fields may follow a name. A model is asked behind those that fit it, at the budgets that
they have."""
PLACES = ("behind the encoder", "behind the projector", "inside the LLM")
"""Where reducers act, as `where_it_acts` says it."""
BASELINES = {"uniform": "--", "random": ":"}
"""Drawn in each panel of the figure, in these styles."""
LENGTHS = ("short", "middle", "long")
MOTIONS = ("still", "moving")
SCORED = ("whole", *LENGTHS, *MOTIONS)


def variants(settings: ReducerSettings, seed: int) -> dict[str, VideoAnswering]:
    """The model behind each reducer, as `reducer budget`; the first has none."""
    made: dict[str, VideoAnswering] = {"everything": settings.qa}
    for budget, share in BUDGETS.items():
        for name in REDUCERS:
            with suppress(InputError):
                setting = settings.at(f"random:seed={seed}" if name == "random" else name, share)
                made[f"{name} {budget}"] = settings.qa.with_stages(reducers=[setting.flag])
    return made


@torch.no_grad()
def answers(
    settings: ReducerSettings, benchmark: Benchmark, seed: int, families: Collection[str] | None
) -> dict[str, dict[str, Any]]:
    """For each variant: scores of each clip (name -> values), and the most tokens of a clip that the LLM reads.

    A reducer that turns out not to work on this model's tokens is left out, and says why.
    """
    asked, by_clip = variants(settings, seed), questions_by_clip(benchmark, families)
    scout = settings.scout(REDUCERS)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    read, change = dict.fromkeys(asked, 0), {}
    settings.qa.processor.folder_rates = folder_rates(benchmark.questions)
    with Progress(f"ask about clips of seed {seed}", len(by_clip), "clips") as bar:
        for clip, questions in by_clip.items():
            encoded = scout.encode_video(clip)
            change[questions[0].vid] = _change(encoded)
            for name, variant in list(asked.items()):
                try:
                    seen = variant.encode_again(encoded)
                    samples[name] += answered(variant, seen, "", questions, {})
                except InputError as problem:
                    print(f"{name} is left out: {problem}")
                    del asked[name], samples[name]
                    continue
                read[name] = max(read[name], _read(variant.for_question(seen, questions[0].question)))
            bar.advance()
    return {name: {**_scores(rows, change), "read": read[name]} for name, rows in samples.items()}


def _change(encoded: EncodedVideo) -> float:
    """How much changes from frame to frame: in features that lie on a grid, else in pixels."""
    if encoded.tokens is not None and encoded.tokens.grid is not None:
        return float(change_of(encoded.tokens)[0, 1:].mean())
    frames = encoded.clip.frames.astype(np.float32)
    return float(np.abs(np.diff(frames, axis=0)).mean())


def _read(encoded: EncodedVideo) -> int:
    """Tokens that the LLM gets."""
    return sum(count for stage, count in encoded.token_counts.items() if stage not in ("encoder", "reducers"))


def _scores(samples: Sequence[Sample], change: dict[str, float]) -> dict[str, list[float]]:
    """Scores in % of each clip, by group."""
    timed = [sample for sample in samples if sample.truth_spans]
    shares = {id(sample): sample.truth_spans[0].length_s / sample.length_s for sample in timed}
    edges = np.quantile(list(shares.values()), (1 / 3, 2 / 3))
    median = statistics.median(change.values())
    groups: dict[str, list[Sample]] = {"whole": timed}
    for number, name in enumerate(LENGTHS):
        groups[name] = [sample for sample in timed if np.searchsorted(edges, shares[id(sample)]) == number]
    for moving, name in enumerate(MOTIONS):
        groups[name] = [sample for sample in timed if (change[sample.vid] > median) == bool(moving)]
    scores = {name: _percent(by_video(rows, sample_iou)) for name, rows in groups.items()}
    return scores | {"place": _percent(by_video([s for s in samples if not s.truth_spans], text_match))}


def _percent(by_clip: dict[str, float]) -> list[float]:
    return [100 * score for score in by_clip.values()]


@torch.no_grad()
def until_first_word(
    settings: ReducerSettings, clip: Path, question: str, rounds: int, take: Callable[[Work], Any]
) -> dict[str, list[Any]]:
    """What is measured from the encoded frames to the first word, in each round, by variant.

    Args:
        settings: the model and its reducers.
        clip: video file.
        question: about it.
        rounds: turns.
        take: measures what is done.
    """
    asked, encoded = variants(settings, 0), settings.scout(REDUCERS).encode_video(clip)

    def ask(name: str) -> None:
        asked[name].ask(asked[name].encode_again(encoded), question, max_new_tokens=1)

    for name in list(asked):
        try:
            ask(name)
        except InputError:  # `answers` says why
            del asked[name]
    return in_turns({name: partial(ask, name) for name in asked}, rounds, take=take)


def fill_memory(results: Results, extra_bytes: dict[str, list[int]]) -> None:
    """A table: MiB by budget."""
    for label, by_budget in labelled(extra_bytes).items():
        mib = {f"memory_{b}_mib": statistics.median(extra_bytes[name]) / 2**20 for b, name in by_budget.items()}
        if mib:
            results.add("when-memory", {"reducer": label}, mib)


def labelled(measured: Collection[str]) -> dict[str, dict[str, str]]:
    """Label of each row -> budget -> the variant that was measured."""
    labels = {"none taken away": dict.fromkeys(BUDGETS, "everything")}
    return labels | {f"`{name}`": {b: f"{name} {b}" for b in BUDGETS if f"{name} {b}" in measured} for name in REDUCERS}


def fill(results: Results, runs: Sequence[dict[str, dict[str, Any]]], ratios: dict[str, Number]) -> None:
    """Two tables: mIoU by budget; at a quarter by length and motion, what the LLM reads, how long that takes."""
    measured = [name for name in runs[0] if all(name in run for run in runs)]

    def score(variant: str, *groups: str) -> dict[str, Number]:
        scored = {group: [run[variant][group] for run in runs] for group in groups}
        return {f"{name}_percent": over_seeds_with_clips(rows) for name, rows in scored.items() if all(rows)}

    for label, by_budget in labelled(measured).items():
        numbers = {f"whole_{b}_percent": score(name, "whole")["whole_percent"] for b, name in by_budget.items()}
        if numbers:
            results.add("when-budgets", {"reducer": label}, numbers)
        if (quarter := by_budget.get("25")) is not None:
            cost: dict[str, Number] = {"read_tokens": runs[0][quarter]["read"], "first_token_ratio": ratios[quarter]}
            results.add("when-groups", {"reducer": label}, {**score(quarter, *SCORED, "place"), **cost})


def figure(results: Results, file: Path) -> None:
    """Draws mIoU over the budget: a panel for each place where reducers act, with what must be beaten in each."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 5.5), layout="constrained")
    whole, *rows = results.tables["when-budgets"]
    every = middle(whole.numbers[f"whole_{next(iter(BUDGETS))}_percent"])
    ticks = [100 * share for share in BUDGETS.values()]
    for axes, place in zip(picture.subplots(1, len(PLACES), sharey=True), PLACES, strict=True):
        for row in rows:
            name = row.labels["reducer"].strip("`")
            acts = where_it_acts(registry.find("reducer", registry.named("reducer", name)[0]).cls)
            if name in BASELINES or acts == place:
                scores = {b: middle(row.numbers[key]) for b in BUDGETS if (key := f"whole_{b}_percent") in row.numbers}
                shares = [100 * BUDGETS[budget] for budget in scores]
                style = {"color": "black", "linestyle": BASELINES[name]} if name in BASELINES else {}
                axes.plot(shares, list(scores.values()), marker="o", markersize=4, label=name, **style)
        axes.axhline(every, color="gray", label="every token")
        axes.set(xscale="log", xlabel="tokens left of all, %", title=place)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
        axes.grid(alpha=0.3)
    picture.axes[0].set(ylabel="mIoU, %")
    picture.savefig(file, dpi=110)


def own_benchmarks(options: argparse.Namespace) -> list[Benchmark]:
    """The questions about time of the annotations, with clips of its own for each seed.

    Raises:
        InputError: if a seed has no clip.
    """
    whole = read_benchmark(options.data, options.videos_dir, options.format, options.durations)
    clips = sorted(questions_by_clip(whole, None))
    random.Random(0).shuffle(clips)
    seeds = len(options.seeds)
    count = min(options.videos, len(clips) // seeds)
    if count == 0:
        raise InputError(f"{options.data}: {len(clips)} clips with questions about time are too few for {seeds} seeds")
    chosen = [set(clips[number * count : (number + 1) * count]) for number in range(seeds)]
    return [
        replace(whole, questions=[question for question in whole.questions if question.video in own]) for own in chosen
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks the model, writes the results, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=24, help="clips of each seed, at most")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    parser.add_argument("--model", default=DEFAULT_SMALL, help="folder, preset or hub id of the model that is asked")
    parser.add_argument(
        "--data", type=Path, help="annotations in any form that mmllm eval reads; else clips are rendered"
    )
    parser.add_argument("--videos-dir", type=Path, help="their videos; by default `videos` beside them")
    parser.add_argument("--format", default="auto", help="form of the annotations")
    parser.add_argument("--durations", type=Path, help="Charades' table of lengths")
    parser.add_argument("--figure", type=Path, help="picture file to write")
    parts = ("answers", "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    if options.data is None:
        families: Collection[str] | None = FAMILIES
        benchmarks = [fresh_benchmark(CLIP_SEED + seed, videos=options.videos, workers=1) for seed in options.seeds]
    else:
        families, benchmarks = None, own_benchmarks(options)
    settings = ReducerSettings(VideoQA.from_pretrained(options.model))
    clip, questions = next(iter(questions_by_clip(benchmarks[0], families).items()))
    device = next(settings.qa.decoder.parameters()).device
    measure = partial(until_first_word, settings, clip, questions[0].question, options.rounds)
    if "memory" in options.only:
        fill_memory(results, measure(take=partial(extra_bytes_on, device)))
    if "answers" in options.only:
        seconds = measure(take=seconds_on(device))
        ratios = {name: turn_ratio(own, seconds["everything"]) for name, own in seconds.items()}
        runs = [answers(settings, own, seed, families) for seed, own in zip(options.seeds, benchmarks, strict=True)]
        fill(results, runs, ratios)
    if "answers" in options.only and families is not None:
        blinds = [blind(benchmark) for benchmark in benchmarks]
        scores = {
            f"{key}_percent": 100 * statistics.mean(each[name] for each in blinds) for name, key in SCORES.items()
        }
        results.add("without-looking", {}, scores)
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    if options.figure is not None and "answers" in options.only:
        figure(results, options.figure)
    results.save(options.json)


if __name__ == "__main__":
    main()
