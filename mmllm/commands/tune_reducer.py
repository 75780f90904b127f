"""`mmllm tune-reducer MODEL DATA`: the cheapest reducer whose mIoU is within the loss that is asked for."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.commands.flags import AS_STORED, AS_USUAL, ComputeFlags, HostedFlags, checked_count, require_rate
from mmllm.errors import require_extra
from mmllm.tuning.config import Cost, TuneConfig

USUAL = TuneConfig()


def tune_reducer(
    model: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    target_miou: float = USUAL.target_miou,
    reducers: tuple[str, ...] = USUAL.reducers,
    budgets: tuple[float, ...] = USUAL.budgets,
    cost: Cost = USUAL.cost,
    path: str | None = None,
    hosted: HostedFlags = AS_USUAL,
    compute: ComputeFlags = AS_STORED,
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    fps: float | None = None,
    limit: int | None = None,
    first_clips: int = USUAL.first_clips,
    halving: int = USUAL.halving,
    max_new_tokens: int = USUAL.max_new_tokens,
    seed: int = USUAL.seed,
    output: Path | None = None,
    workers: int = 1,
    json: bool = False,
) -> int:
    """Search for the cheapest token reducer that keeps a share of the model's mIoU, by successive halving.

    Args:
        model: folder or hub id of a model, or default for the one that comes with mmllm.
        data: folder with val.json, or an annotation file that `mmllm check` reads.
        target_miou: share of the unreduced model's mIoU to keep: 0.95 allows a loss of 5 % of it.
        reducers: names of reducers; fields may follow that stay as they are, such as fastv:layer=3. By default all that
            fit the model.
        budgets: shares of the tokens that are tried.
        cost: what is cheap: few operations of the LLM's pass over the prompt, or few tokens in its layers.
        path: path in place of the model's own, such as plain.
        hosted: settings of hosted models.
        compute: how numbers are stored and multiplied.
        videos: folder of the videos; by default `videos` beside the annotations.
        format: as in `mmllm eval`.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.
        fps: images a second of folders of frames, for rows that have no `fps`.
        limit: use only so many videos, the first ones.
        first_clips: clips of the first rung.
        halving: each rung has so many times the clips of the one before, and one of so many settings goes on.
        max_new_tokens: most tokens of an answer.
        seed: decides in which order clips are taken.
        output: folder for results.json, trials.jsonl, study.db and plot.png; MODEL/tune-reducer if MODEL is a folder. A
            search that was stopped goes on there.
        workers: processes that decode videos.
        json: print the results as JSON instead of a table.
    """
    require_extra("tune", "a search for reducers", "optuna", "matplotlib")
    from mmllm.evaluation.run import read_benchmark
    from mmllm.inference.answering import VideoQA
    from mmllm.tuning.report import plot_of
    from mmllm.tuning.run import tune

    require_rate(fps)
    checked_count("--workers", workers)
    config = TuneConfig(
        target_miou=target_miou,
        reducers=reducers,
        budgets=budgets,
        cost=cost,
        first_clips=first_clips,
        halving=halving,
        max_new_tokens=checked_count("--max-new-tokens", max_new_tokens),
        seed=seed,
    )
    benchmark = read_benchmark(data, videos, format, durations, fps)
    benchmark = benchmark if limit is None else benchmark.first(checked_count("--limit", limit))
    qa = VideoQA.from_pretrained(model, **({} if path is None else {"path": path}), **hosted.given, **compute.given)
    folder = output or (Path(model) if Path(model).is_dir() else Path("runs")) / "tune-reducer"
    results = tune(folder, qa, benchmark, config, workers=workers)
    plot_of(results, folder / "plot.png")
    _show(results, folder, json)
    return 3 if results["left_out"] or results["unreadable"] else 0


def _show(results: dict[str, Any], folder: Path, json: bool) -> None:
    """Prints the results as JSON, or as a table and a few lines."""
    if json:
        print(json_text.dumps(results, indent=2))
        return
    from rich.console import Console

    from mmllm.tuning.report import summary_of, table_of

    console = Console()
    console.print(table_of(results))
    console.print(summary_of(results, folder), highlight=False, markup=False, soft_wrap=True)
    console.print(f"plot: {folder / 'plot.png'}", highlight=False, markup=False, soft_wrap=True)
