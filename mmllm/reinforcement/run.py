"""Reinforcement learning with verifiable rewards on own questions about when something happens.

OUTPUT/run.json        settings and a digest of each row with its media; a run continues only if they are the same
OUTPUT/features/       features of the frozen encoder
OUTPUT/language/       checkpoints and metrics.jsonl
OUTPUT/model/          the trained model; or OUTPUT/adapter/: only the adapters
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PrinterCallback

from mmllm.checkpoints.adapters import with_adapters
from mmllm.datasets.bad_rows import report_problems
from mmllm.datasets.records import Dialogue, Question
from mmllm.errors import ConfigError, InputError, require_extra
from mmllm.fields import to_mapping
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.hosted import HostedVideoQA
from mmllm.interfaces import LlmStage
from mmllm.reinforcement.hosted_policy import HostedPolicy
from mmllm.reinforcement.own_policy import OwnPolicy
from mmllm.reinforcement.policy import Policy
from mmllm.reinforcement.rewards import REWARDS
from mmllm.reinforcement.settings import ReinforceConfig, ReinforceTraining
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder
from mmllm.train.callbacks import MetricsFile, ShowProgress, SkipBadSteps, UpdateModuleProgress
from mmllm.train.features import FeatureCache
from mmllm.train.fitting import arguments, checkpoint_gradients, resumed, trained_model
from mmllm.train.freezing import check_parts, freeze
from mmllm.train.further import record_of, source_of, started_from
from mmllm.train.hosted_finetune import check_hosted, prepared
from mmllm.train.own_dialogues import checked_dialogues
from mmllm.train.record import claim
from mmllm.train.rows import MediaLoader
from mmllm.train.run import locked, save_whole

log = logging.getLogger(__name__)


class ShowReward(ShowProgress):
    """Shows the number of steps and the latest mean reward."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Stores the latest reward for the display."""
        if logs and "reward" in logs:
            self.note = f"reward {float(logs['reward']):.3f}"


def reinforce(
    config: ReinforceConfig,
    annotations: Path,
    output: Path,
    *,
    media: Path | None = None,
    skip_bad: bool = False,
    force: bool = False,
    report_to: Sequence[str] = (),
    workers: int = 2,
    fps: float | None = None,
) -> Path:
    """Trains a model by the rewards of its own answers. A stopped run with the same settings and data is resumed.

    Args:
        config: the model, the rewards and the settings.
        annotations: a file in any format of `read_annotations`, with questions whose true spans are known.
        output: the run's folder.
        media: folder of the videos; by default, for own data, the folder of `annotations`.
        skip_bad: leave bad rows out instead of refusing the file.
        force: continue although settings or data have changed.
        report_to: trackers of transformers.
        workers: number of processes that decode, while features are cached.
        fps: images a second of folders of frames, for rows that have no `fps`; by default the model's own, 5.

    Returns:
        The folder of the model, or of the adapters.

    Raises:
        InputError: if rows or media cannot be used, or no question has a time; the message lists the first ones.
        ConfigError: if the folder has a run with other settings or other data, or the model cannot be trained so.
    """
    require_extra("rl", "reinforcement learning")
    make_folder(output)
    processes.wait()
    with locked(output):
        # step 1: check data and settings, and compare them with an earlier run in this folder
        prompts = config.training.max_steps * config.training.prompts
        dialogues = checked_dialogues(annotations, media, skip_bad=skip_bad, fps=fps)
        questions = timed_questions(dialogues, annotations, skip_bad=skip_bad)
        qa = started_from(source_of(config.model), config.reducers, dialogues)
        hosted = qa if isinstance(qa, HostedVideoQA) else None
        check_model(qa, config)
        claim(output / "run.json", record_of(to_mapping(config), qa, dialogues), force=force)
        finished = output / ("adapter" if config.adapter_only else "model")
        if finished.exists():
            log.info("%s is already trained", finished)
            return finished
        # step 2: train and save
        if hosted is not None:
            policy: Policy = HostedPolicy(hosted, questions)
            prepare = partial(prepared, hosted.model.model, config.training.lora_rank)
        else:
            loader = media_loader(qa, config, output, questions, annotations, skip_bad=skip_bad, workers=workers)
            usable = [item for item in questions if loader.cache is None or _is_cached(loader.cache, item)]
            policy = OwnPolicy(cast(VideoQA, qa), usable, loader)
            prepare = partial(_own_prepared, qa.model, config.training)
        order = order_of(len(policy.questions), prompts, config.seed)
        trained = learned(policy, order, prepare, config, output / "language", report_to=report_to)
        if processes.is_main():
            save_whole(trained, qa.processor if hosted is None else hosted.model.processor, finished)
        processes.wait()
        return finished


def timed_questions(dialogues: Sequence[Dialogue], annotations: Path, *, skip_bad: bool) -> list[Question]:
    """The questions whose true spans are known: only these can be rewarded.

    Raises:
        InputError: if a dialogue has none, or shows something else than one video, and `skip_bad` is False; or if no
            question is left.
    """
    questions: list[Question] = []
    problems = []
    for dialogue in dialogues:
        try:
            timed = [question for question in dialogue.questions() if question.absent or question.truth().spans]
            if not timed:
                raise InputError("no answer has spans (`[]` if nothing happens), so none can be rewarded")
        except InputError as problem:
            problems.append(f"{dialogue.record_id}: {problem}")
            continue
        questions += timed
    report_problems(problems, annotations, skip_bad)
    if not questions:
        raise InputError(f"{annotations}: it has no question whose spans are known")
    return questions


def check_model(qa: VideoAnswering, config: ReinforceConfig) -> None:
    """Refuses a model that cannot be trained by rewards.

    Raises:
        ConfigError: if it lacks a part of `frozen`, a part of it computes something else in training, or a setting is
            for models of another kind.
    """
    if isinstance(qa, HostedVideoQA):
        check_hosted(qa, config.training)
        return
    if config.reducers:
        raise ConfigError("reducers: a model of ours has the reducers of its configuration; leave them out")
    check_parts(qa.model, config.training.frozen, "ReinforceTraining.frozen")
    learning = [stage for stage in qa.model.llm_stages if type(stage).llm_losses is not LlmStage.llm_losses]
    if qa.model.encoder_stage is not None and qa.model.encoder_stage.losses():
        learning.append(qa.model.encoder_stage)
    if learning:
        names = ", ".join(stage.registered_name for stage in learning)
        raise ConfigError(
            f"{names}: learns with a loss of its own which tokens to drop, and keeps all softly while it learns, so "
            "that the answers that are rewarded are not those that are learned: train by rewards without it"
        )


def media_loader(
    qa: VideoAnswering,
    config: ReinforceConfig,
    output: Path,
    questions: Sequence[Question],
    annotations: Path,
    *,
    skip_bad: bool,
    workers: int,
) -> MediaLoader:
    """The loader of the questions' videos; with features on disk, if they depend on neither training nor question.

    Raises:
        InputError: if a video cannot be encoded and `skip_bad` is False.
    """
    cacheable = qa.model.encoder_stage is None and not qa.model.encoder_reads_question
    if not (config.training.keep_features and cacheable):
        return MediaLoader(qa.processor)
    cache = FeatureCache(output / "features", qa.model, qa.processor)
    failed = cache.fill_together([question.video for question in questions if question.video], workers)
    report_problems([f"{video}: {problem}" for video, problem in failed.items()], annotations, skip_bad)
    return MediaLoader(qa.processor, cache)


def _is_cached(cache: FeatureCache, question: Question) -> bool:
    return question.video is not None and cache.path(question.video).exists()


def learned(
    policy: Policy,
    order: Sequence[int],
    prepare: Callable[[], Any],
    config: ReinforceConfig,
    folder: Path,
    *,
    report_to: Sequence[str],
) -> Any:
    """Trains the model of a policy, resuming from the newest checkpoint in `folder`.

    Args:
        policy: the questions with their media.
        order: number of the question of each prompt.
        prepare: gives the policy's model, with frozen parts and with adapters.
        config: all settings.
        folder: for checkpoints and metrics.
        report_to: trackers of transformers.

    Returns:
        In the main process the trained model, with its adapters merged unless only they are saved; in the other
        processes an unspecified value.

    Raises:
        ConfigError: if FSDP or DeepSpeed would spread the weights.
    """
    from trl import GRPOConfig

    from mmllm.reinforcement.trainer import VideoGRPO

    training = config.training
    torch.manual_seed(config.seed)  # for the initial weights of the adapters
    model = prepare()
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    make_folder(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*")  # TRL calls its way to generate experimental
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated")  # old names, which TRL uses
        trainer = VideoGRPO(
            policy,
            order,
            {REWARDS[name]: weight for name, weight in config.rewards.items()},
            model=model,
            args=GRPOConfig(**grpo_arguments(training, folder, seed=config.seed, report_to=report_to)),
            callbacks=[
                SkipBadSteps(training.max_bad_steps),
                MetricsFile(folder / "metrics.jsonl"),
                ShowReward("learn from rewards"),
                UpdateModuleProgress(),
            ],
        )
        trainer.schedule = training
        trainer.remove_callback(PrinterCallback)
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ConfigError(
                "rewards need whole weights in each process, to draw answers: train without FSDP or DeepSpeed"
            )
        resumed(
            trainer,
            folder,
            "learning from rewards",
            lambda: [policy.questions[row].question_id for row in trainer.rows],
        )
    trained = trained_model(trainer, lambda: model)
    bare = getattr(trained, "get_base_model", lambda: trained)()
    bare.__dict__.pop("forward", None)  # TRL has put one around it
    return trained.merge_and_unload() if training.lora_rank and not config.adapter_only else trained


def _own_prepared(model: Any, training: ReinforceTraining) -> Any:
    """Freezes the named parts and, if `lora_rank` is above 0, adds adapters to the LLM; returns the model."""
    freeze(model, training.frozen)
    return with_adapters(model, training.lora_rank) if training.lora_rank else model


def order_of(questions: int, prompts: int, seed: int) -> list[int]:
    """Number of the question of each prompt: an endless shuffle, in which prompt n depends only on the seed and on n.

    A stopped run can so go on in any epoch; TRL's own shuffle begins anew when it is resumed.
    """
    epochs = -(-prompts // questions)
    orders = [np.random.default_rng((seed, epoch)).permutation(questions) for epoch in range(epochs)]
    return np.concatenate(orders)[:prompts].tolist()


def grpo_arguments(training: ReinforceTraining, folder: Path, *, seed: int, report_to: Sequence[str]) -> dict[str, Any]:
    """The settings as keywords of TRL's GRPOConfig."""
    shared = ("num_generations", "num_iterations", "temperature", "max_completion_length", "loss_type", "scale_rewards")
    return {
        **arguments(training, folder, seed=seed, report_to=report_to, workers=0),
        **{name: getattr(training, name) for name in (*shared, "epsilon", "epsilon_high")},
        "gradient_checkpointing": False,  # the model itself is prepared for it
        "shuffle_dataset": False,  # the rows are in the order of the training
        "beta": 0.0,
    }
