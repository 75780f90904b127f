"""Runs a recipe: reads the data, builds the model, trains all stages, saves the model. Each stage can be resumed.

OUTPUT/recipe.json     recipe and digests of the annotations; a run continues only if they are the same
OUTPUT/data/ ...       see `mmllm.train.data`
OUTPUT/encoder/        pre-training of the frame encoder
OUTPUT/language/       checkpoints and metrics.jsonl of projector and LLM; each other stage has a folder like it
OUTPUT/model/          the trained model with its processor; or OUTPUT/adapter/: what of it was trained
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mmllm import registry
from mmllm.checkpoints.cards import card_of, title_of
from mmllm.checkpoints.parts import PARTS_NAMED, save_adapted
from mmllm.errors import ConfigError, MmllmError, require_extra
from mmllm.hub.model_card import write_card
from mmllm.runtime import processes
from mmllm.runtime.files import cannot_write, make_folder, new_folder
from mmllm.synthetic.clips import THINGS
from mmllm.synthetic.rendering import TALK
from mmllm.train.building import build_model
from mmllm.train.data import RunData, read_data
from mmllm.train.recipe import KIND, Recipe, normalised
from mmllm.train.record import claim, withdrawn_if_refused
from mmllm.train.runner import check_stages, run_stages
from mmllm.train.stage import TrainingRun, TrainingStage

log = logging.getLogger(__name__)

SYNTHETIC_NOTE = "this model has only seen synthetic clips of {content}; about other videos it guesses"
CONTENT = {THINGS: "pictures of things"}
"""What clips of a world show, if not coloured shapes."""


def train(
    recipe: Recipe, output: Path, *, force: bool = False, report_to: Sequence[str] = (), workers: int = 2
) -> Path:
    """Runs a recipe. A stopped run of the same recipe is resumed.

    Args:
        recipe: what to train.
        output: the run's folder.
        force: continue although the recipe or the annotations have changed.
        report_to: trackers of transformers.
        workers: number of processes that render and decode.

    Returns:
        The folder of the trained model.

    Raises:
        ConfigError: if the folder has a run of another recipe or of other data; the message lists the differences.
        InputError: if there is nothing to train on.
    """
    require_extra("train", "training")
    make_folder(output)
    processes.wait()
    record = output / "recipe.json"
    with locked(output):
        # step 1: compare the recipe with an earlier run, read the data, build the model, check that it can be trained
        with withdrawn_if_refused(record):
            claim(record, record_of(recipe), read=normalised, force=force)
            finished = output / ("adapter" if recipe.adapter_only else "model")
            if (finished / "config.json").exists():
                log.info("%s is already trained", finished)
                return finished
            stages = stages_of(recipe)
            rows = max(stage.rows_needed for stage in stages)
            data = read_data(recipe.data, output, rows=rows, seed=recipe.seed, workers=workers)
            words = data.words() if recipe.model.language_model is None else []
            model, processor = build_model(recipe.model, recipe.seed, words)
            check_stages(stages, model)
            if recipe.adapter_only and not model.config.tie_word_embeddings:
                raise ConfigError(
                    f"adapter_only: {recipe.model.language_model} has a table of its own for what it writes, in which "
                    "new time tokens would not be trained: set adapter_only to false, and language.lora_rank to 0"
                )
        # step 2: train all stages, save the model
        if processes.count() == 1 and torch.cuda.is_available():
            model.to("cuda")  # features and talk, too, are made there; several processes place their parts themselves
        if isinstance(data, RunData) and recipe.data.own_talk:
            data.answer_talk(model, processor, output / TALK, recipe.data.own_questions)
        run = TrainingRun(
            folder=output,
            model=model,
            processor=processor,
            build=lambda: build_model(recipe.model, recipe.seed, words)[0],
            source=data,
            synthetic=recipe.data.synthetic,
            seed=recipe.seed,
            report_to=report_to,
            workers=workers,
        )
        trained = run_stages(stages, run)
        if processes.is_main():
            if recipe.data.root is None:
                content = CONTENT.get(recipe.data.synthetic.world, "coloured shapes")
                whole = trained.get_base_model() if recipe.adapter_only else trained
                whole.config.training_note = SYNTHETIC_NOTE.format(content=content)
            if recipe.adapter_only:
                parts = {part: getattr(recipe.model, part) for part in PARTS_NAMED}
                with new_folder(finished) as partial:
                    half = torch.cuda.is_available() or recipe.stages[-1].bfloat16
                    save_adapted(trained, processor, partial, parts, torch.bfloat16 if half else torch.float32)
                    write_card(partial, card_of(partial, name=title_of(finished)))
            else:
                save_whole(trained, processor, finished)
            data.report_unreadable(output / "set_aside.txt")
        processes.wait()
        return finished


def record_of(recipe: Recipe) -> dict[str, Any]:
    """Returns what a run depends on: recipe, digests of the annotations, and the number of processes."""
    record = {**recipe.to_mapping(), "processes": processes.count()}
    digests = recipe.data.digests()
    return record if digests is None else {**record, "annotations": digests}


def stages_of(recipe: Recipe) -> list[TrainingStage]:
    """Builds the stages of a recipe, in order."""
    stages = [registry.build(KIND, config) for config in recipe.stages]
    if recipe.adapter_only:
        stages[-1].merge = False
    return stages


def metrics_files(recipe: Recipe, output: Path) -> dict[str, Path]:
    """Returns name -> metrics file of each stage that learns from the run's data; of all stages if none does."""
    stages = list(zip(recipe.names, stages_of(recipe), strict=True))
    chosen = [(name, stage) for name, stage in stages if stage.rows_needed] or stages
    return {name: output / stage.folder / "metrics.jsonl" for name, stage in chosen}


def save_whole(model: Any, processor: Any, folder: Path) -> None:
    """Saves model, processor and card. The folder gets its final name at the end, so `folder` is never incomplete."""
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_card(partial, card_of(partial, name=title_of(folder)))


@contextlib.contextmanager
def locked(output: Path, doing: str = "training") -> Iterator[None]:
    """Locks the folder against a second run, which is told what is being done.

    The system releases the lock when the process ends, even if it crashes.

    Raises:
        MmllmError: if another process has the lock.
    """
    if not processes.is_main():
        yield  # the main process locks for all processes of a distributed run
        return
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:  # in newer versions an OSError, too
        raise MmllmError(f"another process is {doing} in {output}") from None
    except OSError as problem:
        raise cannot_write(output / ".lock", problem) from None
    try:
        yield
    finally:
        lock.release()
