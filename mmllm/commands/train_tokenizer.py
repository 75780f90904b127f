"""`mmllm train-tokenizer RECIPE`: train an image tokenizer; a file and a few flags may change the recipe."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro


def train_tokenizer_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(name="recipe")],
    /,
    output: Path | None = None,
    config: Path | None = None,
    pictures: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    report_to: tuple[str, ...] = (),
    workers: int = 1,
    force: bool = False,
) -> None:
    """Train an image tokenizer on pictures or on frames of videos; the same command continues a stopped run.

    Args:
        name: one of `mmllm list tokenizer-recipes`.
        output: the run's folder; by default runs/RECIPE.
        config: YAML file with new values for fields of the recipe.
        pictures: scenes (rendered ones), a folder of images and videos, or hf:NAME (a Hugging Face data set).
        seed: seed of all random numbers.
        steps: training steps of the tokenizer itself.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that render or read pictures.
        force: continue a run whose recipe has changed.
    """
    from mmllm.commands.flags import checked_count
    from mmllm.commands.train import fields_of_file
    from mmllm.runtime import processes
    from mmllm.train.plots import plot_losses
    from mmllm.train.tokenizer_recipe import tokenizer_recipe
    from mmllm.train.tokenizer_run import metrics_files, train_tokenizer

    recipe = tokenizer_recipe(name).changed(fields_of_file(config), str(config))
    if pictures is not None:
        recipe = replace(recipe, pictures=replace(recipe.pictures, source=pictures))
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if steps is not None:
        recipe = recipe.changed({"training": {"max_steps": steps}})
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / recipe.name
    tokenizer = train_tokenizer(
        recipe, folder, force=force, report_to=report_to, workers=checked_count("--workers", workers, 0)
    )
    if processes.is_main():
        metrics = metrics_files(recipe, folder)
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"tokenizer: {tokenizer}\nlosses: {', '.join(map(str, metrics.values()))}, drawn in {plot}")
