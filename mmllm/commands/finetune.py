"""`mmllm finetune FILE`: a trained model, trained on with one's own videos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import tyro

from mmllm.fields import merged


def finetune_command(
    annotations: Annotated[Path, tyro.conf.Positional],
    model: str,
    output: Path | None = None,
    media: Path | None = None,
    config: Path | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    adapter_only: bool | None = None,
    skip_bad: bool = False,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    force: bool = False,
) -> None:
    """Fine-tune a model on your own videos; the same command goes on where a stopped run was.

    A line of the file is one question about one video:
    {"video": "cook.mp4", "question": "When does he chop?", "answer": "He chops.", "spans": [[12.4, 30]]}

    Args:
        annotations: JSON or JSON lines with your questions, or a file of any form that `mmllm check` knows.
        model: folder or hub id of the model to start from.
        output: the run's folder; runs/finetune-NAME if not given.
        media: folder that the paths of videos are relative to; the file's own if not given.
        config: YAML file with fields of `FinetuneConfig` that are to be changed.
        steps: training steps.
        learning_rate: its peak.
        batch_size: questions of a step.
        lora_rank: rank of the adapters; 0 trains the whole LLM.
        seed: of everything random.
        adapter_only: save the adapters alone; `ask` and `eval` take their folder like a model's.
        skip_bad: leave bad rows out instead of refusing the file.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that decode.
        force: go on although settings or data have changed.
    """
    from mmllm.commands.train import fields_of_file
    from mmllm.runtime import processes
    from mmllm.train.finetune import FinetuneConfig, finetune
    from mmllm.train.plots import plot_losses

    chosen = merged(FinetuneConfig(model=model), fields_of_file(config), str(config))
    flags = {"seed": seed, "adapter_only": adapter_only}
    training = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "lora_rank": lora_rank,
    }
    given = {name: value for name, value in training.items() if value is not None}
    others = {name: value for name, value in flags.items() if value is not None}
    chosen = merged(chosen, {**others, "training": given})
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / f"finetune-{annotations.name.split('.')[0]}"
    finished = finetune(
        chosen, annotations, folder,
        media=media, skip_bad=skip_bad, force=force, report_to=report_to, workers=workers,
    )  # fmt: skip
    if processes.is_main():
        metrics = folder / "language" / "metrics.jsonl"
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"model: {finished}\nlosses: {metrics}, drawn in {plot}")
