"""`mmllm train RECIPE`: train a recipe; a file and a few flags may change it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from mmllm.commands.flags import checked_count, given_flags
from mmllm.errors import ConfigError, InputError
from mmllm.fields import merged
from mmllm.train.recipes import recipe

LARGEST_FILE, MOST_VALUES = 1 << 20, 100_000
"""Most bytes and values of a file of settings."""


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
    decoder_stage: tuple[str, ...] = (),
    time: str | None = None,
    language_model: str | None = None,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    force: bool = False,
) -> None:
    """Train a recipe; the same command continues a stopped run.

    Args:
        name: one of `mmllm list recipes`.
        output: the run's folder; by default runs/RECIPE.
        config: YAML file with new values for fields of the recipe.
        data_root: folder with train.json, val.json and videos/ in ActivityNet-RTL's layout, a folder of shards, or
            hf:NAME (a data set that is streamed); for the lita recipes, with the data sets of LITA's five tasks.
        seed: seed of all random numbers.
        steps: training steps of projector and LLM.
        encoder: an encoder, such as clip or tiny:width=128.
        reducer: a reducer, such as fastervlm:keep=8; several reducers are applied in order.
        path: a path, such as slowfast:mode=temporal.
        decoder_stage: a stage inside the LLM, such as slow-cross-attention; several are applied in order.
        time: how times are written: tokens (LITA's), text, or interleaved (text before each frame).
        language_model: folder or hub id of a pretrained decoder LLM.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that render and decode.
        force: continue a run whose recipe has changed.
    """
    from mmllm.runtime import processes
    from mmllm.train.plots import plot_losses
    from mmllm.train.run import metrics_files, train

    chosen_recipe = recipe(name).changed(fields_of_file(config), str(config))
    model_fields = {
        "encoder": encoder,
        "path": path,
        "time": time,
        "language_model": language_model,
        "reducers": reducer or None,
        "decoder_stages": decoder_stage or None,
    }
    model_changes = given_flags(model_fields)
    chosen_recipe = replace(chosen_recipe, model=merged(chosen_recipe.model, model_changes))
    if data_root is not None:
        chosen_recipe = replace(chosen_recipe, data=replace(chosen_recipe.data, root=data_root))
    if seed is not None:
        chosen_recipe = replace(chosen_recipe, seed=seed)
    if steps is not None:
        chosen_recipe = chosen_recipe.with_stage("language", max_steps=steps)
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / chosen_recipe.name
    model_folder = train(
        chosen_recipe, folder, force=force, report_to=report_to, workers=checked_count("--workers", workers, 0)
    )
    if processes.is_main():
        metrics = metrics_files(chosen_recipe, folder)
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"model: {model_folder}\nlosses: {', '.join(map(str, metrics.values()))}, drawn in {plot}")


def _values(value: Any, most: int) -> int:
    """Number of keys and values of nested lists and mappings, or one above `most`; aliases count each time."""
    pending, count = [value], 0
    while pending and count <= most:
        item = pending.pop()
        count += 1
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set)):
            pending += item
    return count


def fields_of_file(file: Path | None) -> dict[str, Any]:
    """Field -> new value, as a YAML file gives them; empty without a file.

    Raises:
        InputError: if the file cannot be read.
        ConfigError: if the file is no YAML mapping, or its values are more than a configuration can have.
    """
    if file is None:
        return {}
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{file}: this is no file")
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"{file}: has {file.stat().st_size} bytes; at most {LARGEST_FILE} are allowed")
        changes: Any = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise InputError(f"{file}: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise InputError(f"{file}: this is not UTF-8: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{file}: this is not a configuration: its brackets are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise ConfigError(f"{file}: this is not YAML: {problem!s:.300}") from None
    if _values(changes, MOST_VALUES) > MOST_VALUES:
        raise ConfigError(f"{file}: has more than {MOST_VALUES} values; aliases count as what they stand for")
    if changes is None:
        return {}
    if not isinstance(changes, dict):
        raise ConfigError(f"{file}: the file must be a mapping of fields, not a {type(changes).__name__}")
    return changes
