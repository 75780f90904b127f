"""What happens beside the steps of a training: bad ones are skipped, progress is shown, metrics are written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from mmllm.errors import MmllmError
from mmllm.runtime.progress import Progress
from mmllm.train.metrics import read_metrics

log = logging.getLogger(__name__)


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
            flag = bad.to(torch.int32)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            bad = flag > 0
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

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
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

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
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

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds a line."""
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
