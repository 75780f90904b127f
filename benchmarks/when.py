"""What pruning does to *when*: answers of the packaged model with every reducer at several budgets.

    python benchmarks/when.py [--seeds 0 1 2] [--videos 24] [--json out.json]

The model saw every token when it was trained. It is asked about clips that are rendered anew for each seed. Scores are
given for all events, for short, middle and long ones (thirds by their share of the clip), and for clips in which more
or less changes (halves). Reducers inside the LLM drop tokens before its second layer, so its first one reads them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.intervals import middle, over_seeds_with_clips, turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns
from benchmarks.reducers import CLIP_SEED, blind, questions_by_clip
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, sample_iou, text_match
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import EncodedVideo, VideoQA
from mmllm.pruning.video_budget import change_of
from mmllm.runtime.progress import Progress

BUDGETS = {"50": 0.5, "25": 0.25, "12_5": 0.125, "5": 0.05}
"""Share of the tokens in %, as columns call it -> the ratio. Of 16 tokens a frame, 5 % is one."""
REDUCERS = {
    "uniform": "uniform:ratio={0}",
    "random": "random:ratio={0},seed={1}",
    "pool": "pool:stride={2}",
    "fastervlm": "fastervlm:ratio={0}",
    "vispruner": "vispruner:ratio={0}",
    "visionzip": "visionzip:ratio={0}",
    "divprune": "divprune:ratio={0}",
    "cdpruner": "cdpruner:ratio={0},relevance=words",
    "cdpruner without the question": "cdpruner:ratio={0},relevance=none",
    "vidcom2": "vidcom2:ratio={0}",
    "flashvid": "flashvid:ratio={0},expansion=1,score=cls_attention",
    "holitom": "holitom:ratio={0}",
    "fastvid": "fastvid:ratio={0},score=cls_attention",
    "evs": "evs:ratio={0}",
    "video_budget": "video_budget:ratio={0}",
    "fastv": "fastv:layer=1,ratio={0}",
    "fastv, merging": "fastv:layer=1,ratio={0},merge=true",
    "pyramiddrop": "pyramiddrop:layers=1,ratios={0}",
    "sparsevlm": "sparsevlm:layers=0,ratios={0}",
    "dart": "dart:layer=1,ratio={0}",
}
"""Name in the tables -> the reducer; for ratio, seed and the side of a square that becomes one token."""
STRIDES = {"25": 2, "5": 4}
"""The budgets that pooling can have."""
LENGTHS = ("short", "middle", "long")
MOTIONS = ("still", "moving")
SCORED = ("whole", *LENGTHS, *MOTIONS)


def variants(qa: VideoQA, seed: int) -> dict[str, VideoQA]:
    """The model behind each reducer, as `reducer budget`; the first keeps everything, with all scores."""
    made = {"everything": qa.with_stages(reducers=["fastervlm:ratio=1", "visionzip:ratio=1"])}
    for budget, ratio in BUDGETS.items():
        for name, text in REDUCERS.items():
            if name != "pool" or budget in STRIDES:
                made[f"{name} {budget}"] = qa.with_stages(reducers=[text.format(ratio, seed, STRIDES.get(budget))])
    return made


@torch.no_grad()
def answers(qa: VideoQA, benchmark: Benchmark, seed: int) -> dict[str, dict[str, Any]]:
    """For each variant: scores of each clip (name -> values), and the most tokens of a clip that the LLM reads."""
    asked, by_clip = variants(qa, seed), questions_by_clip(benchmark)
    samples: dict[str, list[Sample]] = {name: [] for name in asked}
    read, change = dict.fromkeys(asked, 0), {}
    with Progress(f"ask about clips of seed {seed}", len(by_clip), "clips") as bar:
        for clip, questions in by_clip.items():
            encoded = asked["everything"].encode_video(clip)
            assert encoded.tokens is not None
            change[questions[0].vid] = float(change_of(encoded.tokens)[0, 1:].mean())
            for name, variant in asked.items():
                seen = variant.encode_again(encoded)
                read[name] = max(read[name], _read(variant.for_question(seen, questions[0].question)))
                texts = variant.ask_all(seen, [question.question for question in questions], questions[0].duration_s)
                samples[name] += [Sample.asked(q).answered(a) for q, a in zip(questions, texts, strict=True)]
            bar.advance()
    return {name: {**_scores(rows, change), "read": read[name]} for name, rows in samples.items()}


def _read(encoded: EncodedVideo) -> int:
    return sum(int(sequence.mask.sum()) for sequence in encoded.sequences.values())


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
def first_token_ratios(qa: VideoQA, clip: Path, rounds: int) -> dict[str, Number]:
    """Processor time from the encoded frames to the first word, over that with every token, by variant."""
    asked = variants(qa, 0)
    encoded = asked["everything"].encode_video(clip)

    def ask(name: str) -> None:
        asked[name].ask(asked[name].encode_again(encoded), "When does something spin?", max_new_tokens=1)

    seconds = in_turns({name: (lambda name=name: ask(name)) for name in asked}, rounds)
    return {name: turn_ratio(own, seconds["everything"]) for name, own in seconds.items()}


def fill(results: Results, runs: Sequence[dict[str, dict[str, Any]]], ratios: dict[str, Number]) -> None:
    """Three tables: mIoU by budget; by length and motion at a quarter; what the LLM reads and how long that takes."""

    def score(variant: str, group: str) -> Number:
        return over_seeds_with_clips([run[variant][group] for run in runs])

    rows = {"none taken away": dict.fromkeys(BUDGETS, "everything")}
    rows |= {f"`{name}`": {b: f"{name} {b}" for b in BUDGETS if f"{name} {b}" in runs[0]} for name in REDUCERS}
    for label, by_budget in rows.items():
        numbers = {f"whole_{budget}_percent": score(name, "whole") for budget, name in by_budget.items()}
        results.add("when-budgets", {"reducer": label}, numbers)
        if (quarter := by_budget.get("25")) is not None:
            groups = {f"{group}_percent": score(quarter, group) for group in (*SCORED, "place")}
            cost: dict[str, Number] = {"read_tokens": runs[0][quarter]["read"], "first_token_ratio": ratios[quarter]}
            results.add("when-groups", {"reducer": label}, {**groups, **cost})


def figure(results: Results, file: Path) -> None:
    """Draws mIoU over the budget, one line a reducer."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 5), layout="constrained")
    axes = picture.subplots()
    whole, *rows = results.tables["when-budgets"]
    for number, row in enumerate(rows):
        scores = {BUDGETS[b]: row.numbers[f"whole_{b}_percent"] for b in BUDGETS if f"whole_{b}_percent" in row.numbers}
        name = row.labels["reducer"].strip("`")
        color = "black" if name in ("random", "uniform") else None
        style = ("--", "-", ":")[number % 3]
        axes.plot(
            [100 * ratio for ratio in scores], [middle(score) for score in scores.values()], style, marker="o",
            label=name, color=color,
        )  # fmt: skip
    axes.axhline(middle(whole.numbers[f"whole_{next(iter(BUDGETS))}_percent"]), color="gray", label="every token")
    axes.set(xscale="log", xlabel="tokens left of all, %", ylabel="mIoU, %")
    ticks = [100 * ratio for ratio in BUDGETS.values()]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    picture.savefig(file, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Asks the packaged model, writes the results, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--videos", type=int, default=24, help="clips of each seed")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    parser.add_argument("--figure", type=Path, help="picture file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    qa = VideoQA.from_pretrained(DEFAULT)
    benchmarks = [fresh_benchmark(CLIP_SEED + seed, videos=options.videos, workers=1) for seed in options.seeds]
    ratios = first_token_ratios(qa, next(q.video for q in benchmarks[0].questions if q.video), options.rounds)
    runs = [answers(qa, benchmark, seed) for seed, benchmark in zip(options.seeds, benchmarks, strict=True)]
    fill(results, runs, ratios)
    results.add("without-looking", {}, {"miou_percent": 100 * statistics.mean(blind(b)["mIoU"] for b in benchmarks)})
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    if options.figure is not None:
        figure(results, options.figure)
    results.save(options.json)


if __name__ == "__main__":
    main()
