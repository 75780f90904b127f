"""`mmllm finetune FILE`: train a model further on your own videos."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Annotated

import tyro

from mmllm.commands.flags import checked_count, given_file, given_flags, require_rate
from mmllm.datasets.streams import is_stream
from mmllm.errors import require_extra
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
    reducer: tuple[str, ...] = (),
    skip_bad: bool = False,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    fps: float | None = None,
    force: bool = False,
) -> None:
    """Fine-tune a model on your own videos; the same command continues a stopped run.

    Each line of the file is one question about one video:
    {"video": "cook.mp4", "question": "When does he chop?", "answer": "He chops.", "spans": [[12.4, 30]]}

    Args:
        annotations: JSON or JSON lines with your questions, or anything that `mmllm check` reads, such as a folder of
            shards; or hf:NAME, a data set of the Hugging Face library that is streamed.
        model: folder or hub id of the model to start from: one of ours, or a video LLM of transformers.
        output: the run's folder; by default runs/finetune-NAME.
        media: folder that the paths of videos are relative to; by default the folder of the file.
        config: YAML file with new values for fields of `FinetuneConfig`.
        steps: number of training steps.
        learning_rate: the highest learning rate of the schedule.
        batch_size: questions in one step.
        lora_rank: rank of the adapters; 0 trains the whole LLM.
        seed: seed of all random numbers.
        adapter_only: save only the adapters; `ask` and `eval` take their folder like that of a model.
        reducer: reducers before the LLM of a video LLM of transformers while it is trained, such as evs:rate=0.5.
        skip_bad: leave bad rows out instead of refusing the file.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that decode videos.
        fps: images a second of folders of frames, for rows that have no `fps`; by default the model's own, 5.
        force: continue a run whose settings or data have changed.
    """
    from mmllm.commands.train import fields_of_file
    from mmllm.runtime import processes
    from mmllm.train.finetune import FinetuneConfig, finetune
    from mmllm.train.plots import plot_losses

    require_extra("train", "fine-tuning")
    require_rate(fps)
    annotations = annotations if is_stream(annotations) else given_file(annotations)
    settings = merged(FinetuneConfig(model=model), fields_of_file(config), str(config))
    top_fields = {"seed": seed, "adapter_only": adapter_only, "reducers": reducer or None}
    training_fields = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "lora_rank": lora_rank,
    }
    settings = merged(settings, {**given_flags(top_fields), "training": given_flags(training_fields)})
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    name = re.sub(r"[:#]", "-", annotations.name.split(".")[0])
    folder = output or Path("runs") / f"finetune-{name}"
    model_folder = finetune(
        settings, annotations, folder,
        media=media, skip_bad=skip_bad, force=force, report_to=report_to, fps=fps,
        workers=checked_count("--workers", workers, 0),
    )  # fmt: skip
    if processes.is_main():
        metrics = folder / "language" / "metrics.jsonl"
        plot = plot_losses(metrics, folder / "loss.png")
        print(f"model: {model_folder}\nlosses: {metrics}, drawn in {plot}")
