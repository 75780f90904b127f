"""The stages of a run one after the other: finished ones are skipped, a stopped one goes on.

A stage hands on the weights of its part of the model, in a file of its folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from mmllm.runtime import processes
from mmllm.train.freezing import thawed_afterwards
from mmllm.train.stage import TrainingRun, TrainingStage

log = logging.getLogger(__name__)


def check_stages(stages: Sequence[TrainingStage], model: Any) -> None:
    """Looks whether all stages can train a model, before the first one begins.

    Raises:
        ConfigError: if one of them cannot.
    """
    for stage in stages:
        stage.check(model)


def run_stages(stages: Sequence[TrainingStage], run: TrainingRun) -> Any:
    """Trains the run's model by all stages.

    The last stage writes no file where its part is the whole model, which the run saves anyway.

    Args:
        stages: in order; at least one.
        run: its `model` is trained in place.

    Returns:
        In the main process the trained model in one piece; anything in the others.

    """
    handed_on: list[tuple[TrainingStage, Path]] = []
    for stage in stages:
        folder = run.folder / stage.folder
        weights = folder / stage.weights
        if stage is stages[-1] and stage.part(run.model) is run.model:
            return stage.train(run, folder)
        if weights.exists():
            log.info("%s is trained already", weights)
        else:
            with thawed_afterwards(run.model):
                trained = stage.train(run, folder)
            if processes.is_main():
                _save(stage.part(trained), weights)
            processes.wait()
        handed_on.append((stage, weights))
        if is_spread(run.model):
            run.model = run.build()
            for earlier, file in handed_on[:-1]:
                load_model(earlier.part(run.model), file)
        load_model(stage.part(run.model), weights)
    return run.model


def _save(part: nn.Module, file: Path) -> None:
    """Writes under another name and renames, so that a file of this name is always complete."""
    partial = file.with_suffix(".part")
    save_model(part, str(partial))
    partial.rename(file)


def is_spread(model: nn.Module) -> bool:
    """True where training has left the weights spread over processes (FSDP, DeepSpeed), so that none is whole here."""
    return any(hasattr(weight, "to_local") or hasattr(weight, "ds_id") for weight in model.parameters())
