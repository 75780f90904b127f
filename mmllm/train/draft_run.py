"""Runs the training of a draft: answers the questions, trains the stages, saves the draft. A stopped run is resumed.

OUTPUT/recipe.json      the recipe and the fingerprint of the target; a run continues only if they are the same
OUTPUT/data/ ...        see `mmllm.train.data`
OUTPUT/answers.jsonl    the target's greedy answers, as ids
OUTPUT/pretraining/     checkpoints and metrics.jsonl of the training on the answers of the data, if there is one
OUTPUT/training/        checkpoints and metrics.jsonl of the training on the target's answers
OUTPUT/draft/           the trained draft, for `--decoding NAME:draft=OUTPUT/draft`
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from mmllm import registry
from mmllm.decoding.draft_files import KIND as DRAFT
from mmllm.decoding.draft_files import save_draft, target_print
from mmllm.decoding.refusals import check_llm
from mmllm.errors import ConfigError, require_extra
from mmllm.inference.answering import VideoQA
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, new_folder
from mmllm.train.data import read_data
from mmllm.train.draft_answers import DraftRows
from mmllm.train.draft_recipe import DraftRecipe
from mmllm.train.recipe import KIND
from mmllm.train.record import claim, withdrawn_if_refused
from mmllm.train.run import locked
from mmllm.train.runner import check_stages, run_stages
from mmllm.train.stage import TrainingRun, TrainingStage
from mmllm.train.stages.draft import BesideTarget

log = logging.getLogger(__name__)


def train_draft(
    recipe: DraftRecipe, output: Path, *, force: bool = False, report_to: Sequence[str] = (), workers: int = 2
) -> Path:
    """Runs a recipe. A stopped run of the same recipe is resumed.

    Args:
        recipe: what to train.
        output: the run's folder.
        force: continue although the recipe, the target or the annotations have changed.
        report_to: trackers of transformers.
        workers: number of processes that render and decode.

    Returns:
        The folder of the trained draft.

    Raises:
        ConfigError: if the folder has a run of another recipe, or the target cannot have such a draft.
        InputError: if there is nothing to train on.
    """
    require_extra("train", "training")
    make_folder(output)
    processes.wait()
    record, finished = output / "recipe.json", output / "draft"
    with locked(output):
        # step 1: compare the recipe with an earlier run, load the target, read the data
        with withdrawn_if_refused(record):
            qa = target_of(recipe)
            current = {
                **recipe.to_mapping(), "target_weights": target_print(qa.model), "processes": processes.count(),
                "annotations": recipe.data.digests(),
            }  # fmt: skip
            claim(record, current, force=force)
            if finished.exists():
                log.info("%s is already trained", finished)
                return finished
            stages = stages_of(recipe)
            beside = built(recipe, qa)
            check_stages(stages, beside)
            rows = max(stage.rows_needed for stage in stages)
            data = read_data(recipe.data, output, rows=rows, seed=recipe.seed, workers=workers)
        # step 2: train all stages, save the draft
        run = TrainingRun(
            folder=output,
            model=beside,
            processor=qa.processor,
            build=lambda: built(recipe, qa),
            source=DraftRows(data, qa, output / "answers.jsonl"),
            seed=recipe.seed,
            report_to=report_to,
            workers=workers,
        )
        trained = run_stages(stages, run)
        if processes.is_main():
            with new_folder(finished) as partial:
                save_draft(trained.draft, partial, qa.model, processor=qa.processor, name=recipe.target)
            data.report_unreadable(output / "set_aside.txt")
        processes.wait()
        return finished


def target_of(recipe: DraftRecipe) -> VideoQA:
    """The model whose answers are drafted.

    Raises:
        ConfigError: if it is none that a draft can be trained beside.
    """
    qa = VideoQA.from_pretrained(recipe.target)
    if not isinstance(qa, VideoQA):
        raise ConfigError(f"{recipe.target} is a hosted model of transformers: a draft is trained beside a model of "
                          "mmllm")  # fmt: skip
    check_llm(recipe.name, qa.model)
    return qa


def built(recipe: DraftRecipe, qa: VideoQA) -> BesideTarget:
    """The draft with new weights drawn from the seed, beside its target."""
    torch.manual_seed(recipe.seed)
    draft = registry.build(DRAFT, recipe.draft, model=qa.model).to(qa.model.input_device)
    return BesideTarget(draft, qa.model)


def stages_of(recipe: DraftRecipe) -> list[TrainingStage]:
    """Builds the stages of a recipe, in order."""
    return [registry.build(KIND, config) for config in recipe.stages]


def metrics_files(recipe: DraftRecipe, output: Path) -> dict[str, Path]:
    """Name -> metrics file of each stage."""
    return {stage.registered_name: output / stage.folder / "metrics.jsonl" for stage in stages_of(recipe)}
