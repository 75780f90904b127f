"""How good a model that speaks is: things that it has seen and never seen, real clips cut together, and plain facts.

    python benchmarks/speaks.py --model runs/speak/adapter --json docs/results/speaks.json
    mmllm splice benchmarks/data/spliced_captions.json --videos DIR --output spliced
    python benchmarks/speaks.py --model runs/speak/adapter --spliced spliced --json docs/results/speaks.json

Each seed has clips of things of its own, which are rendered once. Scores are per clip; their interval is that of a
bootstrap over seeds and over the clips of each. The constant is the best interval of each kind of question, fitted to
other clips. In "another video" the model is asked about the wrong clip. Facts are asked without a video, of the model
and of its LLM before training; an answer is right if it has one of the accepted words.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.intervals import Interval, over_seeds_with_clips, student
from benchmarks.layouts import markdown
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.checkpoints.loading import own_processor
from mmllm.checkpoints.parts import has_parts_elsewhere, load_unadapted
from mmllm.errors import InputError
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import by_video, families, groups, sample_iou, sample_set_iou, text_match
from mmllm.evaluation.run import Benchmark, answer_all, read_benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import local_folder
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.conversations import prompts_of
from mmllm.inference.prompts import Turn
from mmllm.synthetic.clips import THINGS

FACTS = Path(__file__).parent / "data" / "facts.json"
SPLICED = "real clips cut together"
_LONGEST_FACT = 48
"""Most tokens of an answer to a fact."""

Answered = tuple[list[Sample], list[Sample], BlindBaseline]
"""Answers, answers about other videos, and the constants."""


def answered(qa: VideoAnswering, benchmark: Benchmark, folder: Path) -> Answered:
    """The answers to a benchmark, which are kept in a folder."""
    samples, shuffled = answer_all(qa, benchmark.questions, folder)
    fit = [Sample.asked(question) for question in benchmark.fit] or samples
    return samples, shuffled, BlindBaseline.fit(fit)


def parts_of(seeds: Sequence[Answered], spliced: Answered | None) -> dict[str, list[Answered]]:
    """Name of each row -> the answers of each seed: all things, their groups, and real clips."""
    rows: dict[str, list[Answered]] = {"all things": list(seeds)}
    for name in sorted({name for samples, _, _ in seeds for name in groups(samples)}):
        rows[name] = [
            (groups(samples).get(name, []), groups(shuffled).get(name, []), blind) for samples, shuffled, blind in seeds
        ]
    return rows | ({} if spliced is None else {SPLICED: [spliced]})


def times(seeds: Sequence[Answered]) -> dict[str, Number]:
    """Scores in % of when something is seen."""
    timed = [[sample for sample in samples if sample.truth_spans] for samples, _, _ in seeds]
    others = [[sample for sample in shuffled if sample.truth_spans] for _, shuffled, _ in seeds]
    constant = [[blind.answer(sample) for sample in own] for own, (_, _, blind) in zip(timed, seeds, strict=True)]
    several = [[sample for sample in own if len(sample.truth_spans) > 1] for own in timed]
    absent = [sample for samples, _, _ in seeds for sample in samples if sample.absent]
    everything = [sample for own in timed for sample in own]
    numbers: dict[str, Number | None] = {
        "questions": len(everything),
        "miou_percent": clips(timed, sample_iou),
        "constant_percent": clips(constant, sample_iou),
        "shuffled_percent": clips(others, sample_iou),
        "several_percent": clips(several, sample_set_iou),
        "fallback_percent": share(everything, lambda sample: sample.fallback),
        "miss_percent": share(everything, lambda sample: sample.denied),
        "false_alarm_percent": share(absent, lambda sample: not sample.denied),
    }
    return {name: number for name, number in numbers.items() if number is not None}


def clips(seeds: Sequence[Sequence[Sample]], score: Callable[[Sample], float]) -> Interval | None:
    """Mean over clips in %, with its interval over seeds and clips; None without any."""
    scores = [[100 * value for value in by_video(samples, score).values()] for samples in seeds]
    scores = [values for values in scores if values]
    return over_seeds_with_clips(scores) if scores else None


def share(samples: Sequence[Sample], true: Callable[[Sample], bool]) -> float | None:
    """Part of the answered questions in %."""
    given = [sample for sample in samples if not sample.error]
    return 100 * sum(map(true, given)) / len(given) if given else None


def kinds(seeds: Sequence[Answered]) -> dict[str, dict[str, Number]]:
    """For each kind of question about things: mIoU or right texts, and those of the constant."""
    rows: dict[str, dict[str, Number]] = {}
    for family in sorted({name for samples, _, _ in seeds for name in families(samples)}):
        own = [(families(samples).get(family, []), blind) for samples, _, blind in seeds]
        timed = any(sample.truth_spans for samples, _ in own for sample in samples)
        score = sample_iou if timed else text_match
        given = [[sample for sample in samples if sample.truth_spans or not sample.timed] for samples, _ in own]
        blind = [[each.answer(sample) for sample in samples] for samples, (_, each) in zip(given, own, strict=True)]
        numbers = {"score_percent": clips(given, score), "constant_percent": clips(blind, score)}
        kept = {name: number for name, number in numbers.items() if number is not None}
        if kept:
            rows[family] = {"questions": sum(map(len, given)), **kept}
    return rows


def right(qa: VideoAnswering, facts: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether the answer to each fact has an accepted word."""
    prompts, results = prompts_of(qa), []
    for fact in facts:
        prompt = prompts.prompt([Turn(role="user", content=(fact["question"],))])
        ids = prompts.generate([prompt], max_new_tokens=_LONGEST_FACT)[0].tolist()
        results.append(is_right(prompts.plain(ids), fact["answers"]))
    return results


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a word of a text begins with one of the answers, or is that number."""
    ends = [r"(?!\.?\d)" if answer[-1].isdigit() else "" for answer in answers]
    return any(
        re.search(rf"(?<![\w.]){re.escape(answer)}{end}", text, re.IGNORECASE)
        for answer, end in zip(answers, ends, strict=True)
    )


def second_question(qa: VideoAnswering, video: Path, question: str) -> dict[str, Number]:
    """Seconds to the first token of a second question about a clip, and the most memory of the process."""
    encoded = qa.encode_video(video)
    qa.ask_all(encoded, [question], max_new_tokens=1)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        qa.ask_all(encoded, [question], max_new_tokens=1)
        seconds.append(time.perf_counter() - start)
    kibi = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibi
    return {"first_token_s": student(seconds), "peak_gib": peak / 2**30}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", default="default-speaks", help="folder of the model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="of clips of things")
    parser.add_argument("--videos", type=int, default=60, help="clips of each seed")
    parser.add_argument("--size", type=int, default=192, help="side of their frames, in pixels")
    parser.add_argument("--spliced", type=Path, help="folder that `mmllm splice` has written")
    parser.add_argument("--facts", type=int, default=0, help="ask so many facts; 0 for all")
    parser.add_argument("--output", type=Path, default=Path("runs/speaks"), help="folder that keeps the answers")
    given = parser.parse_args(arguments)
    folder = local_folder(given.model)
    if not has_parts_elsewhere(folder):
        raise InputError(f"{folder}: is no model with a pretrained LLM beside it: give the adapter of `train speak`")
    qa = VideoQA.from_pretrained(folder)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", "timm"))

    # step 1: what it costs, before anything else has taken memory
    first = fresh_benchmark(given.seeds[0], world=THINGS, videos=given.videos, size=given.size)
    longest = max(first.questions, key=lambda question: question.duration_s or 0.0)
    assert longest.video is not None
    labels = {"clip": f"{longest.duration_s:.0f} s"}
    results.add("speaks_cost", labels, second_question(qa, longest.video, longest.question))

    # step 2: times and texts
    seeds = []
    for seed in given.seeds:
        benchmark = fresh_benchmark(seed, world=THINGS, videos=given.videos, size=given.size)
        seeds.append(answered(qa, benchmark, given.output / f"seed{seed}"))
    spliced = None
    if given.spliced is not None:
        real = read_benchmark(given.spliced)
        spliced = answered(qa, replace(real, fit=[]), given.output / "spliced")
    for name, own in parts_of(seeds, spliced).items():
        results.add("speaks", {"clips": name}, times(own))
    for name, numbers in kinds(seeds).items():
        results.add("speaks_kinds", {"family": name}, numbers)

    # step 3: facts, before and after
    facts = json.loads(FACTS.read_text())[: given.facts or None]
    before = VideoQA(load_unadapted(folder), own_processor(folder))
    for name, model in (("the LLM alone", before), ("trained", qa)):
        hits = right(model, facts)
        results.add("speaks_facts", {"model": name}, {"facts": len(hits), "right_percent": 100 * sum(hits) / len(hits)})
    results.save(given.json)
    for table, rows in results.tables.items():
        print(markdown(table, rows), end="\n\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
