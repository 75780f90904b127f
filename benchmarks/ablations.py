"""The papers' claims on one footing: tiny models that differ in one thing, trained equally long.

    python benchmarks/ablations.py --jobs 2   # hours on two CPU cores; goes on where it was stopped
    python benchmarks/ablations.py --short    # every row once, a few steps each: shows that it runs

Held equal: clips and questions, frame encoder, LLM steps, questions a step, learning rates. Not equal: CPU time, which
the table has beside the scores. Each row is trained once for each seed, on features of the frozen encoder that are
kept; the interval is that of the mean over seeds and clips, by a bootstrap over both. Writes results.json, ablations.md
and ablations.png into --output.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmllm.commands.evaluate import evaluate_into
from mmllm.config import LossConfig
from mmllm.evaluation.metrics import by_video, sample_iou
from mmllm.evaluation.run import read_benchmark
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.fields import merged
from mmllm.inference.answering import VideoQA
from mmllm.modeling.blending import BlendConfig
from mmllm.synthetic.rendering import render
from mmllm.train.recipes import DataConfig, DecoderConfig, Recipe, recipe
from mmllm.train.run import train

RATIOS = (0.5, 0.125)
"""Shares of the 16 patches that a reducer leaves of each frame."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model that differs from the base in one thing."""

    group: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields of `ModelConfig`."""
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields of `Recipe`."""

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.group}-{self.name}")


def rows() -> list[Row]:
    """All rows; the first is the base."""
    plain: dict[str, Any] = {"blend": BlendConfig(rms=0.3), "loss": LossConfig(), "time_token_init": "normal"}
    made = [
        Row(group="times", name="time tokens, with what the recipes add"),
        Row(group="times", name="time tokens alone, as published", changes=plain),
        Row(group="times", name="text", changes={**plain, "time": "text"}),
        Row(group="times", name="text, also before each frame", changes={**plain, "time": "interleaved"}),
        Row(group="path", name="slow tokens only", changes={"path": "slowfast:mode=spatial_pool"}),
        Row(group="path", name="fast tokens only", changes={"path": "slowfast:mode=temporal"}),
    ]
    for frames in (4, 8, 25, 100):
        path = f"slowfast:image_frames={frames}"
        made.append(Row(group="frames", name=str(frames), changes={"num_frames": frames, "path": path}))
    for name in ("fastervlm", "hired", "uniform", "random"):
        for ratio in RATIOS:
            changes = {"reducers": (f"{name}:ratio={ratio}",)}
            made.append(Row(group=name, name=f"{16 * ratio:.0f} of 16", changes=changes))
    made += [
        Row(group="without", name="grounding loss", changes={"loss": LossConfig(time_sigma=1.0)}),
        Row(group="without", name="soft time targets", changes={"loss": LossConfig(grounding_weight=1.0)}),
        Row(group="without", name="visual tokens anchored in time", changes={"blend": BlendConfig(rms=0.3)}),
        Row(group="without", name="time tokens that begin as a sinusoid", changes={"time_token_init": "normal"}),
        Row(group="without", name="visual tokens of the words' size", changes={"blend": BlendConfig(time_anchor=3.0)}),
        Row(
            group="without", name="attention that begins by copying", changes={"decoder": DecoderConfig(copying=False)}
        ),
        Row(group="without", name="pre-training of the frame encoder", training={"frame_encoder": None}),
        Row(group="without", name="several questions to a row", training={"language": {"questions_per_video": 1}}),
        Row(group="without", name="Muon", training={"language": {"matrix_learning_rate": 0.0}}),
    ]
    return made


def settings(short: bool) -> Recipe:
    """The recipe that all rows start from: the quickstart's with fewer LLM steps and the frame encoder of `full`."""
    start = recipe("quickstart").changed({"frame_encoder": recipe("full").stage("frame_encoder")})
    if not short:
        return start.with_stage("language", max_steps=400, matrix_learning_rate=0.02)
    short_stages = {
        "frame_encoder": {"max_steps": 1, "batch_size": 4, "workers": 0},
        "language": {"max_steps": 2, "batch_size": 2},
    }
    return replace(
        start.changed(short_stages),
        data=DataConfig(synthetic=replace(start.data.synthetic, train_videos=6, val_videos=2)),
        model=replace(start.model, num_frames=10, path="slowfast:image_frames=10"),
    )


def run_row(row: Row, *, seed: int, base: Recipe, output: Path, encoder: Path | None) -> dict[str, Any]:
    """Trains and evaluates one row, or reads what is there; returns CPU seconds and IoU of each clip.

    Args:
        row: what to change.
        seed: of the model and of the order of the clips.
        base: what to change it in.
        output: folder of all runs.
        encoder: the frame encoder that all rows share; None for the run that makes it.
    """
    folder = output / "runs" / f"{row.folder}-{seed}"
    done = folder / "ablation.json"
    if not done.exists():
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        if encoder is not None:
            shutil.copy(encoder, folder / "encoder" / "encoder.safetensors")
        if not (folder / "features").exists():
            shared = output / "features"
            shared.mkdir(exist_ok=True)
            (folder / "features").symlink_to(shared.resolve(), target_is_directory=True)
        data = DataConfig(root=str(output / "data"), synthetic=base.data.synthetic)
        changed = replace(base, name=row.folder, seed=seed, data=data, model=merged(base.model, row.changes))
        changed = changed.changed(row.training)
        goes_on = (folder / "language").exists()  # what it took before it was stopped is not known
        started = time.process_time()
        model = train(changed, folder, force=True, workers=1)
        took_s = None if goes_on else time.process_time() - started
        benchmark = read_benchmark(output / "data").first(base.data.synthetic.val_videos)
        evaluate_into(folder / "eval", VideoQA.from_pretrained(model), benchmark, shuffle=False)
        samples = [sample for sample in read_samples(folder / "eval" / "samples.jsonl") if sample.truth_spans]
        done.write_text(json.dumps({"cpu_s": took_s, "miou": _by_clip(samples)}, indent=1) + "\n")
    return json.loads(done.read_text())


def _by_clip(samples: Sequence[Sample]) -> dict[str, float]:
    return by_video(samples, sample_iou)


def interval(runs: Sequence[dict[str, float]], resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % interval of IoU by clip, of runs that differ in their seed."""
    clips = sorted(runs[0])
    table = np.array([[run[clip] for clip in clips] for run in runs])  # seeds x clips
    draw = np.random.default_rng(0)
    means = []
    for _ in range(resamples):
        some = table[draw.integers(len(runs), size=len(runs))]
        means.append(some[:, draw.integers(len(clips), size=len(clips))].mean())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(table.mean()), float(low), float(high)


def result(row: Row, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the table says of a row that was trained with several seeds."""
    mean, low, high = interval([run["miou"] for run in runs])
    took_s = [run["cpu_s"] for run in runs if run["cpu_s"] is not None]
    cpu_s = float(np.mean(took_s)) if took_s else None
    return {"group": row.group, "name": row.name, "miou": mean, "low": low, "high": high, "cpu_s": cpu_s}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| | | mIoU | 95 % | CPU seconds of training |", "|---|---|---|---|---|"]
    for one in results:
        low, high = (f"{100 * one[name]:.1f}" for name in ("low", "high"))
        took_s = "-" if one["cpu_s"] is None else f"{one['cpu_s']:.0f}"
        lines.append(f"| {one['group']} | {one['name']} | {100 * one['miou']:.1f} | {low} to {high} | {took_s} |")
    return "\n".join(lines) + "\n"


def figure(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Draws mIoU with its interval, one line a row."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 0.3 * len(results) + 1), layout="constrained")
    axes = picture.subplots()
    colors = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(one["group"] for one in results))}
    for place, one in enumerate(results):
        mean, low, high = (100 * one[name] for name in ("miou", "low", "high"))
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colors[one["group"]], capsize=3)
    axes.set_yticks(range(len(results)), [f"{one['group']}: {one['name']}" for one in results])
    axes.invert_yaxis()
    axes.set(xlabel="mIoU in %, with 95 % interval over seeds and clips")
    axes.grid(axis="x", alpha=0.3)
    picture.savefig(file, dpi=120)


def carried_out(
    work: Callable[..., dict[str, Any]], turns: Sequence[tuple[Row, int]], jobs: int
) -> Iterator[dict[str, Any]]:
    """The results of all runs in their order, `jobs` of them at a time."""
    if jobs == 1:
        yield from (work(row, seed=seed) for row, seed in turns)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for run in [pool.submit(work, row, seed=seed) for row, seed in turns]:
            yield run.result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="a few steps and one seed")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at once, one thread each")
    parser.add_argument("--only", nargs="*", help="groups to run")
    given = parser.parse_args(arguments)
    base, seeds = settings(given.short), 1 if given.short else given.seeds
    render(given.output / "data", base.data.synthetic, workers=given.jobs)
    everything = rows()
    run_row(everything[0], seed=0, base=base, output=given.output, encoder=None)
    encoder = given.output / "runs" / f"{everything[0].folder}-0" / "encoder" / "encoder.safetensors"
    chosen = [row for row in everything if not given.only or row.group in given.only]
    turns = [(row, seed) for seed in range(seeds) for row in chosen]  # all rows of a seed first
    work = partial(run_row, base=base, output=given.output, encoder=encoder)
    runs: dict[Row, list[dict[str, Any]]] = {row: [] for row in chosen}
    for (row, seed), run in zip(turns, carried_out(work, turns, given.jobs), strict=True):
        runs[row].append(run)
        score = 100 * np.mean(list(run["miou"].values()))
        print(f"{row.group}, {row.name}, seed {seed}: mIoU {score:.1f}", flush=True)
    results = [result(row, runs[row]) for row in chosen]
    (given.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (given.output / "ablations.md").write_text(table(results))
    figure(results, given.output / "ablations.png")
    print(table(results))


if __name__ == "__main__":
    main()
