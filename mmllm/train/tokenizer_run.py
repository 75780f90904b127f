"""Runs a recipe of an image tokenizer: trains its stages and saves it. A stopped run is resumed.

OUTPUT/recipe.json      the recipe; a run continues only if it is the same
OUTPUT/frames/          frames of videos, decoded once
OUTPUT/latents/         checkpoints and metrics.jsonl of the latents, if they have weights
OUTPUT/autoencoder/     checkpoints and metrics.jsonl of the tokenizer
OUTPUT/tokenizer/       the trained tokenizer
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmllm import registry
from mmllm.checkpoints.autoencoders import save_autoencoder
from mmllm.errors import ConfigError, require_extra
from mmllm.fields import from_mapping
from mmllm.interfaces import Autoencoder
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder
from mmllm.train.pictures import Pictures
from mmllm.train.recipe import KIND
from mmllm.train.record import claim, withdrawn_if_refused
from mmllm.train.run import locked
from mmllm.train.runner import check_stages, run_stages
from mmllm.train.stage import TrainingRun, TrainingStage
from mmllm.train.tokenizer_recipe import TokenizerRecipe

log = logging.getLogger(__name__)


def train_tokenizer(
    recipe: TokenizerRecipe, output: Path, *, force: bool = False, report_to: Sequence[str] = (), workers: int = 1
) -> Path:
    """Runs a recipe. A stopped run of the same recipe is resumed.

    Args:
        recipe: what to train.
        output: the run's folder.
        force: continue although the recipe has changed.
        report_to: trackers of transformers.
        workers: number of processes that render or read pictures.

    Returns:
        The folder of the trained tokenizer.

    Raises:
        ConfigError: if the folder has a run of another recipe; the message lists the differences.
        InputError: if there are no pictures.
    """
    require_extra("train", "training")
    make_folder(output)
    processes.wait()
    record, finished = output / "recipe.json", output / "tokenizer"
    with locked(output):
        with withdrawn_if_refused(record):
            current = {**recipe.to_mapping(), "processes": processes.count()}
            claim(record, current, read=with_new_fields, force=force)
            if (finished / "config.json").exists():
                log.info("%s is already trained", finished)
                return finished
            stages, model = stages_of(recipe), built(recipe)

            def pictures(count: int) -> Pictures:
                with processes.main_first():
                    cache = output / "frames"
                    return Pictures(recipe.pictures, model.image_size, count, seed=recipe.seed, cache=cache)

            run = TrainingRun(
                folder=output,
                model=model,
                processor=None,
                build=lambda: built(recipe),
                pictures=pictures,
                seed=recipe.seed,
                report_to=report_to,
                workers=workers,
            )
            check_stages(stages, run.model)
            pictures(1)  # if there are none, this says so before anything is trained
        trained = run_stages(stages, run)
        if processes.is_main():
            save_autoencoder(trained, finished)
        processes.wait()
        return finished


def with_new_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run, with the defaults of fields that the version which wrote it did not have."""
    fields = {name: value for name, value in saved.items() if name != "processes"}
    try:
        autoencoder = registry.config_of("autoencoder", fields.pop("autoencoder"))
        recipe = from_mapping(TokenizerRecipe, {**fields, "autoencoder": autoencoder})
    except (ConfigError, KeyError):
        return dict(saved)  # it is compared as it is
    return {**recipe.to_mapping(), "processes": saved.get("processes")}


def built(recipe: TokenizerRecipe) -> Autoencoder:
    """The tokenizer of a recipe, with new weights drawn from the seed."""
    torch.manual_seed(recipe.seed)
    autoencoder: Autoencoder = registry.build("autoencoder", recipe.autoencoder)
    return autoencoder


def stages_of(recipe: TokenizerRecipe) -> list[TrainingStage]:
    """Builds the stages of a recipe, in order."""
    return [registry.build(KIND, config) for config in recipe.stages]


def metrics_files(recipe: TokenizerRecipe, output: Path) -> dict[str, Path]:
    """Name -> metrics file of each stage."""
    stages: list[Any] = stages_of(recipe)
    return {stage.registered_name: output / stage.folder / "metrics.jsonl" for stage in stages}
