"""`mmllm train-draft NAME`: train a draft of a model's answers; a file and a few flags may change its recipe."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro


def train_draft_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(name="draft")],
    /,
    model: str | None = None,
    output: Path | None = None,
    config: Path | None = None,
    data_root: str | None = None,
    videos: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    force: bool = False,
) -> None:
    """Train a draft beside a frozen model, for --decoding NAME:draft=FOLDER; the same command continues a stopped run.

    Args:
        name: one of `mmllm list drafts`, with its settings, such as flash:ahead=3.
        model: the model whose answers are drafted: a folder or hub id; by default the packaged one.
        output: the run's folder; by default runs/NAME. The draft is in its folder draft/.
        config: YAML file with new values for fields of the recipe.
        data_root: folder with train.json and videos/ in ActivityNet-RTL's layout; by default clips are rendered.
        videos: how many clips are rendered.
        seed: seed of all random numbers.
        steps: training steps of each stage.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that render and decode.
        force: continue a run whose recipe has changed.
    """
    from mmllm.commands.flags import checked_count, given_flags
    from mmllm.commands.train import fields_of_file
    from mmllm.runtime import processes
    from mmllm.train.draft_recipe import draft_recipe
    from mmllm.train.draft_run import metrics_files, train_draft
    from mmllm.train.plots import plot_losses

    recipe = draft_recipe(name).changed(fields_of_file(config), str(config))
    recipe = recipe.changed(given_flags({"target": model, "seed": seed}))
    if data_root is not None or videos is not None:
        changes = given_flags({"root": data_root})
        if videos is not None:
            changes["synthetic"] = replace(recipe.data.synthetic, train_videos=videos)
        recipe = replace(recipe, data=replace(recipe.data, **changes))
    if steps is not None:
        stages = {"training": recipe.training, "pretraining": recipe.pretraining}
        recipe = recipe.changed({stage: {"max_steps": steps} for stage, config in stages.items() if config is not None})
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / recipe.name
    draft = train_draft(
        recipe, folder, force=force, report_to=report_to, workers=checked_count("--workers", workers, 0)
    )
    if processes.is_main():
        metrics = metrics_files(recipe, folder)
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"draft: {draft}\nlosses: {', '.join(map(str, metrics.values()))}, drawn in {plot}")
