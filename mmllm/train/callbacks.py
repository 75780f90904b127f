"""Callbacks of the Trainer: skip steps without a finite gradient, show progress, write metrics."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from mmllm.errors import MmllmError
from mmllm.runtime.files import append_text, write_text
from mmllm.runtime.progress import Progress
from mmllm.train.metrics import read_metrics

log = logging.getLogger(__name__)


class SkipBadSteps(TrainerCallback):
    """Skips a step whose gradient is not finite; `max_in_a_row` such steps in a row end the training."""

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Removes the gradients of a bad step, so that the optimizer changes nothing.

        Raises:
            MmllmError: after too many bad steps in a row.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
        bad_flags = [torch.tensor(False, device=args.device), *(~torch.isfinite(part).all() for part in local)]
        bad = torch.stack(bad_flags).any()
        if torch.distributed.is_initialized():  # a step is skipped in all processes if it is bad in one of them
            flag = bad.to(torch.int32)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            bad = flag > 0
        if not bad:
            self.in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        log.warning("step %d is skipped: its gradient is not finite (%d so far)", state.global_step + 1, self.skipped)
        if self.in_a_row >= self.max_in_a_row:
            raise MmllmError(
                f"{self.in_a_row} steps in a row had no finite gradient, so training stops. The checkpoints are kept. "
                "Lower the learning rate, or check the rows named above"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the number of skipped steps to the metrics, if it is not zero."""
        if logs is not None and self.skipped:
            logs["skipped_steps"] = self.skipped


class LossParts(TrainerCallback):
    """Adds the parts of the loss to the metrics, by name; the loss is their sum.

    Args:
        means: gives the mean of each part since the last call, in this process.
    """

    def __init__(self, means: Callable[[], dict[str, Tensor]]) -> None:
        self.means = means

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the parts to an entry with a loss."""
        if logs is None or "loss" not in logs:
            return
        parts = self.means()
        if torch.distributed.is_initialized():
            for value in parts.values():  # the mean over processes, as the Trainer gives the loss
                torch.distributed.all_reduce(value)
                value /= torch.distributed.get_world_size()
        logs.update({name: float(value) for name, value in parts.items()})


class ShowProgress(TrainerCallback):
    """Shows the number of steps and the latest loss."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.progress: Progress | None = None
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the progress at the current step, which is above zero in a resumed run."""
        is_main = state.is_world_process_zero
        self.progress = Progress(self.what, state.max_steps, "steps", done=state.global_step, shown=is_main)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Stores the latest loss for the display."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step."""
        if self.progress is not None:
            self.progress.advance(note=self.note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the progress bar."""
        if self.progress is not None:
            self.progress.bar.close()


class UpdateModuleProgress(TrainerCallback):
    """Sets `progress`, the fraction of the training that is done, on modules that have this attribute."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Sets 0 at the first step and 1 at the last."""
        for module in model.modules():
            if hasattr(module, "progress"):
                module.progress = state.global_step / max(1, state.max_steps - 1)


class MetricsFile(TrainerCallback):
    """Writes what the Trainer logs as JSON lines. On resume, lines of steps that will be repeated are removed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the lines of steps after the current one: they will be repeated."""
        if state.is_world_process_zero:
            lines = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds a line."""
        if state.is_world_process_zero and logs:
            append_text(self.path, json.dumps({"step": state.global_step, **logs}) + "\n")
