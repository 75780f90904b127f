"""Does mIoU rise when a supervised model goes on with rewards of its own answers?

    python benchmarks/reinforce.py --jobs 2            # three seeds, hours of two CPU cores; goes on where it stopped
    python benchmarks/reinforce.py --short             # everything once, a few steps: shows that it runs

The model that comes with mmllm was trained on 2,000 rendered clips with answers. Here each seed renders other clips of
the same world and trains the model on them in three ways: with rewards (`mmllm reinforce`), with answers
(`mmllm finetune`, the same questions drawn equally often), and with rewards whose truth is another clip's, which must
not help. All are scored on clips that nobody was trained on, the same for all seeds, by the greedy answer. Differences
to the model before are paired by clip; intervals are bootstraps over seeds and clips.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intervals import over_seeds_and_clips, student
from benchmarks.jobs import results_of
from benchmarks.layouts import markdown
from benchmarks.measuring import timed
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.commands.evaluate import evaluate_into
from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import sample_iou
from mmllm.evaluation.samples import read_samples
from mmllm.inference.answering import VideoQA
from mmllm.reinforcement.run import reinforce
from mmllm.reinforcement.settings import ReinforceConfig, ReinforceTraining
from mmllm.synthetic.rendering import render
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.recipes import full

WAYS = ("rewards", "answers", "rewards of other clips")
HELD_OUT_SEED, FIRST_TRAINING_SEED = 9001, 500
GENERATIONS = 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done."""

    seeds: int
    clips: int
    """Rendered for the training of each seed."""
    held_out: int
    """Clips on which all are scored."""
    steps: int
    prompts: int
    """Questions of a step."""


LONG = Size(seeds=3, clips=200, held_out=100, steps=300, prompts=8)
SHORT = Size(seeds=2, clips=3, held_out=2, steps=2, prompts=2)


def training_file(folder: Path, seed: int, clips: int, *, shifted: bool) -> Path:
    """Renders clips, and writes their questions about time as lines of own data.

    Args:
        folder: for the clips and the file.
        seed: of the clips.
        clips: how many.
        shifted: give each question the spans of a question of the same family about the next clip that has one.
    """
    config = replace(full().data.synthetic, seed=FIRST_TRAINING_SEED + seed, train_videos=clips, val_videos=0)
    render(folder, config, workers=1)
    questions = [item for item in read_rtl(folder / "train.json", folder / "videos").items if item.truth().spans]
    file = folder / ("shifted.jsonl" if shifted else "clips.jsonl")
    spans = other_spans(questions) if shifted else [item.truth().spans for item in questions]
    lines = []
    for item, own in zip(questions, spans, strict=True):
        row = {"id": item.question_id, "video": str(item.video), "question": item.question, "duration": item.duration_s}
        fitted = [[min(time_s, item.duration_s or time_s) for time_s in span.to_json()] for span in own]
        lines.append(json.dumps({**row, "answer": item.truth().text, "spans": fitted}) + "\n")
    file.write_text("".join(lines))
    return file


def other_spans(questions: Sequence[Question]) -> list[Any]:
    """The spans of another clip's question of the same family, scaled to the own clip's length."""
    by_family: dict[str, list[Question]] = defaultdict(list)
    for item in questions:
        by_family[item.family].append(item)
    chosen = []
    for item in questions:
        family = by_family[item.family]
        start = family.index(item)
        others = [family[(start + step) % len(family)] for step in range(1, len(family))]
        other = next((question for question in others if question.vid != item.vid), item)
        scale = (item.duration_s or 1) / (other.duration_s or 1)
        spans = other.truth().spans
        chosen.append([replace(span, start_s=span.start_s * scale, end_s=span.end_s * scale) for span in spans])
    return chosen


def scores(model: str | Path, output: Path, held_out: int) -> dict[str, float]:
    """Clip -> mean IoU of the answers to its questions about time."""
    evaluate_into(
        output, VideoQA.from_pretrained(model), fresh_benchmark(HELD_OUT_SEED, videos=held_out), shuffle=False
    )
    by_clip: dict[str, list[float]] = defaultdict(list)
    for sample in read_samples(output / "samples.jsonl"):
        if sample.truth_spans:
            by_clip[sample.vid].append(sample_iou(sample))
    return {vid: float(np.mean(values)) for vid, values in by_clip.items()}


def trained(way: str, *, seed: int, size: Size, model: str, output: Path, rate: float) -> dict[str, Any]:
    """One training and its score: `clips` (clip -> mean IoU) and `cpu_s` of the training; stored for the next time."""
    folder = output / f"seed{seed}" / way.replace(" ", "-")
    kept = folder / "result.json"
    if kept.exists():
        return json.loads(kept.read_text())
    file = training_file(output / f"seed{seed}" / "data", seed, size.clips, shifted=way == WAYS[2])
    batch = {"max_steps": size.steps, "logging_steps": 1, "save_steps": 50, "lora_rank": 16}
    if way == "answers":
        learning = FinetuneTraining(**batch, batch_size=size.prompts, learning_rate=1e-3)
        work = partial(finetune, FinetuneConfig(model=model, seed=seed, training=learning))
    else:
        steps = {"num_generations": GENERATIONS, "batch_size": GENERATIONS * size.prompts}
        rewarded = ReinforceTraining(**batch, **steps, gradient_accumulation_steps=1, learning_rate=rate)
        work = partial(reinforce, ReinforceConfig(model=model, seed=seed, training=rewarded))
    tuned, seconds = timed(lambda: work(file, folder / "run", workers=0))
    result = {"clips": scores(tuned, folder / "eval", size.held_out), "cpu_s": seconds}
    kept.write_text(json.dumps(result))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains in all ways with all seeds, and prints mIoU before and after."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", default="default-small")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of the rewards")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/reinforce-benchmark"))
    options = parser.parse_args(arguments)
    size = SHORT if options.short else LONG
    size = replace(size, seeds=options.seeds or size.seeds, steps=options.steps or size.steps)
    results = Results(command_line(__file__, arguments), machine("torch", "trl"))
    before = scores(options.model, options.output / "before", size.held_out)
    first = {"miou_percent": 100 * float(np.mean(list(before.values())))}
    rows = [results.add("reinforce", {"way": "before"}, first)]
    chosen = {"size": size, "model": options.model, "output": options.output, "rate": options.rate}
    turns = [(way, seed) for way in WAYS for seed in range(size.seeds)]
    done = list(results_of(partial(trained, **chosen), turns, options.jobs))
    for place, way in enumerate(WAYS):
        runs = done[place * size.seeds : (place + 1) * size.seeds]
        after = [[100 * run["clips"][vid] for vid in before] for run in runs]
        more = [[score - 100 * before[vid] for score, vid in zip(run, before, strict=True)] for run in after]
        numbers = {"miou_percent": over_seeds_and_clips(after), "more_points": over_seeds_and_clips(more)}
        cpu_s = student([run["cpu_s"] for run in runs])
        rows.append(results.add("reinforce", {"way": way, "seeds": f"{size.seeds}"}, {**numbers, "cpu_s": cpu_s}))
    print(markdown("reinforce", rows))
    results.save(options.json)


if __name__ == "__main__":
    main()
