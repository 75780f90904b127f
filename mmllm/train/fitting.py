"""Training of projector and LLM with transformers' Trainer: repeatable, resumable, with adapters on request."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mmllm.errors import ConfigError, MmllmError, is_out_of_memory
from mmllm.runtime import processes
from mmllm.runtime.progress import Progress
from mmllm.train.metrics import read_metrics
from mmllm.train.optimizers import muon
from mmllm.train.packing import NAMES
from mmllm.train.schedule import Schedule

log = logging.getLogger(__name__)


class InOrder(Trainer):
    """A Trainer that takes rows in the order in which the dataset draws them, and steps over what is not a number."""

    names: Sequence[str] = ()
    """The rows of the batch at hand."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any) -> Tensor:
        """One batch forward and backward."""
        self.names = inputs.pop(NAMES, ())
        loss = super().training_step(model, inputs, *arguments)
        if not torch.isfinite(loss):
            log.warning("the loss of a batch is %s; its rows: %s", float(loss), ", ".join(self.names) or "unnamed")
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        processes.wait()  # the trainer's state is written last, and tells that the checkpoint is complete

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as problem:
            partial = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(partial, ignore_errors=True)
            kept = latest_checkpoint(partial.parent)
            raise MmllmError(
                f"cannot save {partial} ({problem}); the last good checkpoint is {kept or 'none'}: make room and give "
                "the same command again"
            ) from None


class SkipBadSteps(TrainerCallback):
    """Leaves the weights as they are where a gradient is not finite; too many such steps in a row end the training."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.skipped = 0
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Takes the gradients away, so that the optimizer has nothing to do."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        parts = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        bad = torch.stack([torch.tensor(False, device=args.device), *(~torch.isfinite(g).all() for g in parts)]).any()
        if torch.distributed.is_initialized():
            told = bad.to(torch.int32)
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
            bad = told > 0
        if not bad:
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        log.warning("step %d is skipped: its gradient is not finite (%d so far)", state.global_step + 1, self.skipped)
        if self.in_a_row >= self.most:
            raise MmllmError(
                f"{self.in_a_row} steps in a row had no finite gradient, so training stops; checkpoints are kept. "
                "Lower the learning rate, or look at the rows named above"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Adds the count to the metrics, once there is one."""
        if logs is not None and self.skipped:
            logs["skipped_steps"] = self.skipped


class ShowProgress(TrainerCallback):
    """Shows steps and the latest loss."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progress: Progress | None = None
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts counting, from where the run goes on."""
        shown = state.is_world_process_zero
        self.progress = Progress(self.what, state.max_steps, "steps", done=state.global_step, shown=shown)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Keeps the latest loss to be shown."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step."""
        if self.progress is not None:
            self.progress.advance(note=self.note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the bar."""
        if self.progress is not None:
            self.progress.bar.close()


class TellProgress(TrainerCallback):
    """Tells parts that learn by a schedule of their own how much of the training is done, as their `progress`."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """From 0 at the first step to 1 at the last."""
        for module in model.modules():
            if hasattr(module, "progress"):
                module.progress = state.global_step / max(1, state.max_steps - 1)


class MetricsFile(TrainerCallback):
    """Writes what the Trainer logs as JSON lines; after a resume, lines of steps to be repeated are cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the lines of the steps that are not repeated."""
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Adds a line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; newer ones that a kill left incomplete are deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        if _complete(path):
            return path
        log.warning("%s is incomplete and is deleted; training goes on from the one before", path)
        shutil.rmtree(path)
    return None


def _complete(checkpoint: Path) -> bool:
    """True if everything is there; the Trainer writes its state last.

    One process leaves `optimizer.pt` and `rng_state.pth`, several leave numbered ones, FSDP and DeepSpeed folders.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    optimizer = [*checkpoint.glob("optimizer*"), *checkpoint.glob("global_step*")]
    return bool(optimizer) and any(checkpoint.glob("rng_state*.pth"))


def fit(
    model: Any,
    dataset: Dataset,
    collate: Any,
    training: Schedule,
    output: Path,
    *,
    what: str,
    seed: int,
    report_to: Sequence[str] = (),
    workers: int = 0,
    heads: Sequence[str] = (),
) -> Any:
    """Trains `model` on the rows of `dataset`, going on from the newest complete checkpoint under `output`.

    Args:
        model: anything whose forward takes what `collate` makes and returns a loss.
        dataset: rows, in the order in which they are to be seen.
        collate: rows to model inputs.
        training: how.
        output: gets `checkpoints/` and `metrics.jsonl`.
        what: the work in a word or two, to be shown.
        seed: of everything that is random in training.
        report_to: trackers of transformers, such as `tensorboard` or `wandb`; none by default.
        workers: processes that prepare rows.
        heads: submodules that Muon leaves to AdamW, where the weight matrices are trained by Muon.

    Returns:
        The Trainer; `trained_model` takes the model out of it.

    Raises:
        ConfigError: if Muon is asked for where weights are spread over processes.
        MmllmError: if memory runs out, a checkpoint cannot be saved, or nothing finite is left to learn.
    """
    output.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(training.warmup_share * training.max_steps),
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        use_cpu=processes.only_cpus(),
        bf16=torch.cuda.is_available(),
        logging_steps=training.logging_steps,
        logging_first_step=True,
        save_steps=training.save_steps,
        save_total_limit=2,
        seed=seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=workers,
        ddp_find_unused_parameters=True,  # a batch without images or intervals leaves parts unused
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(report_to) or "none",
        disable_tqdm=True,
    )
    if training.gradient_checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        newer({"use_reentrant": False})
    optimizer = muon(model, training, heads) if training.matrix_learning_rate else None
    trainer = InOrder(
        optimizers=(optimizer, None),
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[
            SkipBadSteps(training.max_bad_steps),
            MetricsFile(output / "metrics.jsonl"),
            ShowProgress(what),
            TellProgress(),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if optimizer is not None and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise ConfigError("Muon needs whole weight matrices: set matrix_learning_rate = 0 with FSDP and DeepSpeed")
    start = latest_checkpoint(output / "checkpoints")
    if start is not None:
        log.info("going on from %s", start)
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise MmllmError(
            f"out of memory in {what}, with rows {', '.join(trainer.names) or 'unnamed'}: lower batch_size (and raise "
            "gradient_accumulation_steps), num_frames or the encoder's image_size, or turn on gradient_checkpointing"
        ) from None
    return trainer


def trained_model(trainer: Trainer, rebuild: Callable[[], nn.Module]) -> Any:
    """The trained model in one piece, in the main process; anything in the others.

    Args:
        trainer: what `fit` gave.
        rebuild: makes the same model again, for where the weights of this one are spread over processes.
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
