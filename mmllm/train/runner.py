"""Trains the stages of a run in order: skips finished stages and resumes a stopped one.

Each stage saves the weights of its part of the model in a file. The next stage starts from them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from mmllm.runtime import processes
from mmllm.runtime.files import replacing
from mmllm.train.freezing import thawed_afterwards
from mmllm.train.stage import TrainingRun, TrainingStage
from mmllm.train.streamed import StreamedDialogues

log = logging.getLogger(__name__)


def check_stages(stages: Sequence[TrainingStage], model: Any) -> None:
    """Checks, before the first stage begins, that all stages can train the model.

    Raises:
        ConfigError: if a stage cannot train it.
    """
    for stage in stages:
        stage.check(model)


def run_stages(stages: Sequence[TrainingStage], run: TrainingRun) -> Any:
    """Trains the run's model with all stages.

    The last stage writes no file if its part is the whole model, because the run saves the whole model itself.

    Args:
        stages: in order; at least one.
        run: its `model` is trained; it is rebuilt between stages if its weights are spread over processes.

    Returns:
        In the main process the whole trained model; in the other processes an unspecified value.
    """
    try:
        return _trained(stages, run)
    finally:
        if isinstance(run.source, StreamedDialogues):
            run.source.end()


def _trained(stages: Sequence[TrainingStage], run: TrainingRun) -> Any:
    """See `run_stages`."""
    finished: list[tuple[TrainingStage, Path]] = []
    for stage in stages:
        folder = run.folder / stage.folder
        weights = folder / stage.weights
        if stage is stages[-1] and stage.part(run.model) is run.model:
            return stage.train(run, folder)
        if weights.exists():
            log.info("%s is already trained", weights)
        else:
            with thawed_afterwards(run.model):
                trained = stage.train(run, folder)
            if processes.is_main():
                _save(stage.part(trained), weights)
            processes.wait()
        finished.append((stage, weights))
        if is_spread(run.model):  # no process has whole weights to load into
            run.model = run.build()
            for earlier, file in finished[:-1]:
                load_model(earlier.part(run.model), file)
        load_model(stage.part(run.model), weights)
    return run.model


def _save(part: nn.Module, file: Path) -> None:
    """Saves the weights. The file gets its final name at the end, so `file` is never incomplete."""
    with replacing(file) as partial:
        save_model(part, str(partial))


def is_spread(model: nn.Module) -> bool:
    """Returns True if FSDP or DeepSpeed has spread the weights over processes, so that no process has all of them."""
    return any(hasattr(weight, "to_local") or hasattr(weight, "ds_id") for weight in model.parameters())
