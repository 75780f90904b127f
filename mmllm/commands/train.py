"""`mmllm train RECIPE`: a recipe, changed by a file and by a few flags."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from mmllm.errors import ConfigError, InputError
from mmllm.fields import merged
from mmllm.train.recipes import recipe


def train_command(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(name="recipe")],
    /,
    output: Path | None = None,
    config: Path | None = None,
    data_root: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    encoder: str | None = None,
    reducer: tuple[str, ...] = (),
    path: str | None = None,
    time: str | None = None,
    language_model: str | None = None,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    force: bool = False,
) -> None:
    """Train a recipe; the same command goes on where a stopped run was.

    Args:
        name: one of `mmllm list recipes`.
        output: the run's folder; runs/RECIPE if not given.
        config: YAML file with fields of the recipe that are to be changed.
        data_root: folder with train.json, val.json and videos/ in ActivityNet-RTL's layout; for the lita recipes, with
            the data sets of LITA's five tasks.
        seed: of everything random.
        steps: training steps of projector and LLM.
        encoder: such as clip, or tiny:width=128.
        reducer: such as fastervlm:keep=8; several are applied in order.
        path: such as slowfast:mode=temporal.
        time: how times are written: tokens (LITA's), text, or interleaved (text before each frame).
        language_model: folder or hub id of a pretrained decoder LLM.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that render and decode.
        force: go on although the recipe of the run in this folder was another.
    """
    from mmllm.runtime import processes
    from mmllm.train.plots import plot_losses
    from mmllm.train.run import metrics_files, train

    changed = recipe(name).changed(fields_of_file(config), str(config))
    model = {
        "encoder": encoder,
        "path": path,
        "time": time,
        "language_model": language_model,
        "reducers": reducer or None,
    }
    changed = replace(changed, model=merged(changed.model, {k: v for k, v in model.items() if v is not None}))
    if data_root is not None:
        changed = replace(changed, data=replace(changed.data, root=data_root))
    if seed is not None:
        changed = replace(changed, seed=seed)
    if steps is not None:
        changed = changed.with_stage("language", max_steps=steps)
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / changed.name
    finished = train(changed, folder, force=force, report_to=report_to, workers=workers)
    if processes.is_main():
        metrics = metrics_files(changed, folder)
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"model: {finished}\nlosses: {', '.join(map(str, metrics.values()))}, drawn in {plot}")


def fields_of_file(file: Path | None) -> dict[str, Any]:
    """The fields that a YAML file changes; none without a file.

    Raises:
        InputError: if it cannot be read.
        ConfigError: if it is no YAML mapping.
    """
    if file is None:
        return {}
    try:
        changes: Any = yaml.safe_load(file.read_text())
    except OSError as problem:
        raise InputError(f"{file}: {problem.strerror}") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"{file}: not YAML: {problem}") from None
    if changes is None:
        return {}
    if not isinstance(changes, dict):
        raise ConfigError(f"{file}: must be a mapping of fields, not {type(changes).__name__}")
    return changes
