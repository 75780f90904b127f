"""Trains any model with transformers' Trainer: rows in the order of the dataset, repeatable, resumable."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mmllm.errors import ConfigError, MmllmError, is_out_of_memory
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder
from mmllm.train.callbacks import MetricsFile, ShowProgress, SkipBadSteps, UpdateModuleProgress
from mmllm.train.freezing import check_parts
from mmllm.train.optimizers import give_rates, muon
from mmllm.train.packing import NAMES
from mmllm.train.schedule import TrainingSchedule
from mmllm.train.spreading import spread_layers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _WorkerStart:
    """What a process that prepares rows does first: it ties its life to its parent's, then what the Trainer wants."""

    before: Callable[[int], None] | None

    def __call__(self, number: int) -> None:
        processes.end_with_parent()
        if self.before is not None:
            self.before(number)


class Scheduled(Trainer):
    """A Trainer with the learning rates of a schedule, whose checkpoints are whole or not there."""

    schedule: TrainingSchedule
    """The settings, with the learning rates of single parts."""

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """The optimizer, with groups of their own for parts that have their own learning rate."""
        optimizer = super().create_optimizer(*arguments, **options)
        give_rates(optimizer, dict(self.model.named_parameters()), self.schedule)
        return optimizer

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        processes.wait()  # the main process writes the trainer's state next; that file marks the checkpoint as complete

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as problem:
            partial = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(partial, ignore_errors=True)
            last_good = latest_checkpoint(partial.parent)
            raise MmllmError(
                f"cannot save {partial} ({problem}); the last good checkpoint is {last_good or 'none'}: free some disk "
                "space and run the same command again"
            ) from None


class InOrder(Scheduled):
    """A Trainer that takes rows in the order of the dataset and names the rows of a batch whose loss is not finite."""

    names: Sequence[str] = ()
    """Names of the rows of the current batch."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def get_train_dataloader(self) -> Any:
        """The batches; the processes that prepare them end with this one."""
        loader = super().get_train_dataloader()
        if loader.num_workers:
            loader.worker_init_fn = _WorkerStart(loader.worker_init_fn)
        return loader

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any) -> Tensor:
        """Runs one batch forward and backward and returns its loss."""
        self.names = inputs.pop(NAMES, ())
        loss = super().training_step(model, inputs, *arguments)
        if not torch.isfinite(loss):
            log.warning("the loss of a batch is %s; its rows: %s", float(loss), ", ".join(self.names) or "unnamed")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips the gradients of groups with `clipped_apart` by themselves; returns the norm of all others."""
        groups = self.optimizer.param_groups
        apart = [weight for group in groups if group.get("clipped_apart") for weight in group["params"]]
        if not apart:
            return super()._clip_grad_norm(model)
        limit, others = self.args.max_grad_norm, {id(weight) for weight in apart}
        self.accelerator.clip_grad_norm_(apart, limit)
        rest = [weight for weight in model.parameters() if id(weight) not in others]
        return self.accelerator.clip_grad_norm_(rest, limit)


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint, or None. Deletes newer ones that are incomplete after a crash."""
    newest_first = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in newest_first:
        if _complete(path):
            return path
        log.warning("%s is incomplete: it is deleted, and training resumes from an earlier one", path)
        shutil.rmtree(path)
    return None


def _complete(checkpoint: Path) -> bool:
    """Returns True if a checkpoint has all its files; the Trainer writes `trainer_state.json` last.

    One process writes `optimizer.pt` and `rng_state.pth`, several processes write numbered files, and FSDP and
    DeepSpeed write folders.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    optimizer = [*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]
    return bool(optimizer) and any(checkpoint.glob("rng_state*.pth"))


_WHOLE_MATRICES = (
    "Muon and a discriminator need whole weight matrices: set matrix_learning_rate = 0, and train without adversarial, "
    "with FSDP and DeepSpeed"
)


def fit(
    model: Any,
    dataset: Dataset[Any],
    collate: Any,
    training: TrainingSchedule,
    output: Path,
    *,
    what: str,
    seed: int,
    report_to: Sequence[str] = (),
    workers: int = 0,
    heads: Sequence[str] = (),
    optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    whole: Sequence[nn.Module] = (),
) -> Any:
    """Trains `model` on the rows of `dataset`, resuming from the newest complete checkpoint under `output`.

    Args:
        model: a module whose forward takes the output of `collate` and returns a loss.
        dataset: rows in training order.
        collate: makes model inputs from rows.
        training: number of steps, learning rates and so on.
        output: gets `checkpoints/` and `metrics.jsonl`.
        what: a short name of the work, for progress and messages.
        seed: seed of all randomness in training.
        report_to: trackers of transformers, such as `tensorboard` or `wandb`; none by default.
        workers: number of processes that prepare rows.
        heads: submodules, by the beginning of their names, that AdamW trains even if Muon trains other matrices.
        optimizer: replaces the one of the schedule. The gradient of its groups with `clipped_apart` is clipped by
            itself.
        callbacks: more callbacks of the Trainer; they may add to the metrics.
        whole: parts of the model that FSDP does not spread; see `spread_layers`.

    Returns:
        The Trainer; `trained_model` gets the model from it.

    Raises:
        ConfigError: if Muon or an own optimizer is used and weights are spread, a part with its own rate is missing, or
            FSDP does not fit (see `spread_layers`).
        MmllmError: if memory runs out, a checkpoint cannot be saved, or too many gradients are not finite.
    """
    make_folder(output)
    check_parts(getattr(model, "get_base_model", lambda: model)(), training.learning_rates, "learning_rates")
    # step 1: make a Trainer with our order of rows, our callbacks and, if requested, Muon
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    if optimizer is None and training.matrix_learning_rate:
        optimizer = muon(model, training, heads)
    trainer = InOrder(
        optimizers=(optimizer, None),
        model=model,
        args=TrainingArguments(**arguments(training, output, seed=seed, report_to=report_to, workers=workers)),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[
            *callbacks,
            SkipBadSteps(training.max_bad_steps),
            MetricsFile(output / "metrics.jsonl"),
            ShowProgress(what),
            UpdateModuleProgress(),
        ],
    )
    trainer.schedule = training
    trainer.remove_callback(PrinterCallback)
    if optimizer is not None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise ConfigError(_WHOLE_MATRICES)
    spread_layers(trainer, whole)
    # step 2: train all remaining steps, from the newest complete checkpoint
    resumed(trainer, output, what, lambda: trainer.names)
    return trainer


def resumed(trainer: Trainer, output: Path, what: str, names: Callable[[], Sequence[str]]) -> None:
    """Trains all remaining steps, from the newest complete checkpoint under `output`.

    Args:
        trainer: its checkpoints are in `checkpoints/` of `output`.
        output: as for `fit`.
        what: a short name of the work, for messages.
        names: gives the names of the rows of the current batch.

    Raises:
        MmllmError: as in `fit`.
    """
    start = latest_checkpoint(output / "checkpoints")
    if start is not None:
        log.info("resuming from %s", start)
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise _out_of_memory(what, names()) from None


def checkpoint_gradients(model: Any) -> None:
    """Lets the model compute activations again in the backward pass; newer transformers have the first name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _out_of_memory(what: str, rows: Sequence[str]) -> MmllmError:
    """Returns the error for a batch that does not fit into memory."""
    return MmllmError(
        f"out of memory in {what}, with rows {', '.join(rows) or 'unnamed'}: lower batch_size (and raise "
        "gradient_accumulation_steps), num_frames or the encoder's image_size, or turn on gradient_checkpointing"
    )


def arguments(
    training: TrainingSchedule, output: Path, *, seed: int, report_to: Sequence[str], workers: int
) -> dict[str, Any]:
    """Returns a schedule as keywords of transformers' TrainingArguments."""
    in_bfloat16 = training.bfloat16 and processes.multiplies_bfloat16()
    return {
        "output_dir": str(output / "checkpoints"),
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": int(training.warmup_fraction * training.max_steps),
        "weight_decay": training.weight_decay,
        "adam_beta2": training.adam_beta2,
        "max_grad_norm": training.max_grad_norm,
        "use_cpu": processes.only_cpus() or in_bfloat16,
        "bf16": torch.cuda.is_available() or in_bfloat16,
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "save_steps": training.save_steps,
        "save_total_limit": 2,
        "seed": seed,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "dataloader_num_workers": workers,
        "ddp_find_unused_parameters": True,  # a batch without images or intervals leaves parts unused
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": list(report_to) or "none",
        "disable_tqdm": True,
    }


def trained_model(trainer: Trainer, rebuild: Callable[[], nn.Module]) -> Any:
    """Returns the whole trained model in the main process; an unspecified value in the other processes.

    Args:
        trainer: the result of `fit`.
        rebuild: makes the same model again; used if the weights of this one are spread over processes.
    """
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        state = accelerator.get_state_dict(trainer.model_wrapped)
        if not processes.is_main():
            return None
        model = rebuild()
        model.load_state_dict({name: value.float() for name, value in state.items()})
        return model
    return accelerator.unwrap_model(trainer.model)
