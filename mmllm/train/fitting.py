"""Training of projector and LLM with transformers' Trainer: repeatable, resumable, with adapters on request."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mmllm.model import MmllmForConditionalGeneration
from mmllm.progress import Progress
from mmllm.train.schedule import Schedule

log = logging.getLogger(__name__)


class InOrder(Trainer):
    """A Trainer that takes rows in the order in which the dataset draws them."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut short is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    read = []
    for line in lines:
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: left out a line that is cut short", path)
    return read


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
    """True if everything is there; the Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return all((checkpoint / name).exists() for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")) or any(
        checkpoint.glob("rng_state_*.pth")
    )


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
        bf16=torch.cuda.is_available(),
        logging_steps=training.logging_steps,
        logging_first_step=True,
        save_steps=training.save_steps,
        save_total_limit=2,
        seed=seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(report_to) or "none",
        disable_tqdm=True,
    )
    if training.gradient_checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        newer({"use_reentrant": False})
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[MetricsFile(output / "metrics.jsonl"), ShowProgress(what), TellProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    start = latest_checkpoint(output / "checkpoints")
    if start is not None:
        log.info("going on from %s", start)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return trainer.model


def with_adapters(model: MmllmForConditionalGeneration, rank: int) -> Any:
    """The model with low-rank adapters on the LLM's linear layers; projector and time tokens are trained as they are.

    The result is peft's; `merge_and_unload()` gives a plain model again.
    """
    from peft import LoraConfig, get_peft_model

    linear = r"language_model\..*\.(q|k|v|o|gate|up|down)_proj"
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        modules_to_save=["visual_tokenizer"] + (["grounding"] if model.grounding is not None else []),
        trainable_token_indices=model.config.time_token_ids,
    )
    return get_peft_model(model, config)
