"""`mmllm reinforce FILE`: train a model by verifiable rewards of its own answers to your questions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import tyro

from mmllm.commands.flags import checked_count, given_file, given_flags, require_rate
from mmllm.errors import ConfigError, require_extra
from mmllm.fields import merged


def reinforce_command(
    annotations: Annotated[Path, tyro.conf.Positional],
    model: str,
    output: Path | None = None,
    media: Path | None = None,
    config: Path | None = None,
    rewards: tuple[str, ...] = (),
    reducer: tuple[str, ...] = (),
    steps: int | None = None,
    learning_rate: float | None = None,
    generations: int | None = None,
    lora_rank: int | None = None,
    seed: int | None = None,
    adapter_only: bool | None = None,
    skip_bad: bool = False,
    report_to: tuple[str, ...] = (),
    workers: int = 2,
    fps: float | None = None,
    force: bool = False,
) -> None:
    """Train a model by rewards of its own answers (GRPO of TRL); the same command continues a stopped run.

    The file is that of `mmllm finetune`; its questions need `spans`, the true times. Train with `mmllm finetune` first:
    rewards only choose among what a model already says.

    Args:
        annotations: JSON or JSON lines with your questions, or a file in any format that `mmllm check` reads.
        model: folder or hub id of the model to start from: one of ours, or a video LLM of transformers.
        output: the run's folder; by default runs/reinforce-NAME.
        media: folder that the paths of videos are relative to; by default the folder of the file.
        config: YAML file with new values for fields of `ReinforceConfig`.
        rewards: what is rewarded, with weights: tiou, w1, format; by default tiou=1 format=0.1.
        reducer: reducers before the LLM of a video LLM of transformers while it is trained, such as evs:rate=0.5.
        steps: number of training steps.
        learning_rate: the highest learning rate of the schedule.
        generations: answers to each prompt, which are compared with each other.
        lora_rank: rank of the adapters; 0 trains the whole LLM.
        seed: seed of all random numbers.
        adapter_only: save only the adapters; `ask` and `eval` take their folder like that of a model.
        skip_bad: leave bad rows out instead of refusing the file.
        report_to: trackers, such as tensorboard or wandb.
        workers: processes that decode videos.
        fps: images a second of folders of frames, for rows that have no `fps`; by default the model's own, 5.
        force: continue a run whose settings or data have changed.
    """
    require_extra("rl", "reinforcement learning")
    from mmllm.commands.train import fields_of_file
    from mmllm.reinforcement.run import reinforce
    from mmllm.reinforcement.settings import ReinforceConfig
    from mmllm.runtime import processes

    require_rate(fps)
    annotations = given_file(annotations)
    settings = merged(ReinforceConfig(model=model), fields_of_file(config), str(config))
    top_fields = {
        "seed": seed,
        "adapter_only": adapter_only,
        "rewards": weights_of(rewards) or None,
        "reducers": reducer or None,
    }
    training_fields = {
        "max_steps": steps,
        "learning_rate": learning_rate,
        "num_generations": generations,
        "lora_rank": lora_rank,
    }
    settings = merged(settings, {**given_flags(top_fields), "training": given_flags(training_fields)})
    logging.getLogger("mmllm").setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    folder = output or Path("runs") / f"reinforce-{annotations.name.split('.')[0]}"
    model_folder = reinforce(
        settings, annotations, folder,
        media=media, skip_bad=skip_bad, force=force, report_to=report_to, fps=fps,
        workers=checked_count("--workers", workers, 0),
    )  # fmt: skip
    if processes.is_main():
        print(f"model: {model_folder}\nrewards: {folder / 'language' / 'metrics.jsonl'}")


def weights_of(rewards: tuple[str, ...]) -> dict[str, float]:
    """Reward -> weight, from `tiou` or `tiou=1`.

    Raises:
        ConfigError: if a weight is no number.
    """
    weights = {}
    for reward in rewards:
        name, _, weight = reward.partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ConfigError(f"--rewards {reward!r:.80}: the weight must be a number, such as tiou=1") from None
    return weights
