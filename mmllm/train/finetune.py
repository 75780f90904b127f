"""Fine-tunes a trained model on own videos: low-rank adapters in the LLM, and all weights outside LLM and encoder.

OUTPUT/run.json        settings and a digest of each row with its media; a run continues only if they are the same
OUTPUT/features/       features of the frozen encoder
OUTPUT/language/       checkpoints and metrics.jsonl
OUTPUT/model/          the fine-tuned model; or OUTPUT/adapter/: only the adapters
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.datasets.records import Dialogue
from mmllm.datasets.streams import VideoStream, is_stream
from mmllm.errors import ConfigError, InputError, require_extra
from mmllm.fields import require, require_seed, to_mapping
from mmllm.inference.answering import VideoQA
from mmllm.inference.hosted import HostedVideoQA
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder
from mmllm.train.further import record_of, source_of, started_from
from mmllm.train.hosted_finetune import check_hosted, hosted_questions, trained_hosted
from mmllm.train.own_dialogues import OwnDialogues, checked_dialogues
from mmllm.train.record import claim
from mmllm.train.run import locked, save_whole
from mmllm.train.runner import check_stages, run_stages
from mmllm.train.stage import TrainingRun
from mmllm.train.stages.language import LanguageStage, LanguageTraining
from mmllm.train.streamed import StreamedDialogues

log = logging.getLogger(__name__)

_NEWER: tuple[tuple[Any, ...], ...] = (
    ("chunks", 1, "chunk_share"), ("ring", 1, "ring_sends"), ("base_kl_weight", 0), ("grounding", True),
)  # fmt: skip
"""Fields that earlier runs have not in their record: name, value that does nothing, and fields that depend on it."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTraining(LanguageTraining):
    """Settings of the training; each dialogue is one row."""

    max_steps: int = 300
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    lora_rank: int = 16
    questions_per_video: int = 1
    grounding: bool = True
    """Train with the model's grounding loss, if it has one. False trains without, as `ring` and `chunks` need, and the
    model that is saved has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("encoder" in self.frozen, self, "frozen", "a list that includes 'encoder'")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """All settings of a fine-tuning, without its data."""

    model: str
    """Folder or hub id of the model to fine-tune."""
    seed: int = 0
    adapter_only: bool = False
    """Save only the adapters; otherwise they are merged and the whole model is saved."""
    reducers: tuple[str, ...] = ()
    """Reducers before the LLM of a hosted model while it is trained; a model of ours has those of its configuration."""
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self) -> None:
        require_seed(self.seed, "FinetuneConfig.seed")
        rank = self.training.lora_rank
        require(rank > 0 or not self.adapter_only, self, "adapter_only", f"False with lora_rank = {rank}")


def finetune(
    config: FinetuneConfig,
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
    """Fine-tunes a model. A stopped run with the same settings and data is resumed.

    Args:
        config: the model and the settings.
        annotations: a file in any format of `read_annotations`, shards, or the name of a stream (hf:...); for own data
            see `mmllm.datasets.dialogues`.
        output: the run's folder.
        media: folder of the videos and images; by default, for own data, the folder of `annotations`.
        skip_bad: leave bad rows out instead of refusing the file.
        force: continue although settings or data have changed.
        report_to: trackers of transformers.
        workers: number of processes that decode.
        fps: images a second of folders of frames, for rows that have no `fps`; by default the model's own, 5.

    Returns:
        The folder of the model, or of the adapters.

    Raises:
        InputError: if rows or media cannot be used; the message lists the first ones.
        ConfigError: if the folder has a run with other settings or other data; the message lists the differences.
    """
    require_extra("train", "fine-tuning")
    make_folder(output)
    processes.wait()
    with locked(output):
        # step 1: check data and settings, and compare them with an earlier run in this folder
        stream = streamed(annotations, media, fps) if is_stream(annotations) else None
        dialogues = checked_dialogues(annotations, media, skip_bad=skip_bad, fps=fps) if stream is None else []
        source = source_of(config.model)
        qa = started_from(source, config.reducers, dialogues)
        hosted = qa if isinstance(qa, HostedVideoQA) else None
        stages = [LanguageStage(config.training, merge=not config.adapter_only)]
        if hosted is None:
            _check_own(config, dialogues)
            check_stages(stages, _without_grounding(config, qa.model))
        else:
            check_hosted(hosted, config.training)
            if stream is not None:
                raise InputError(f"{stream.name}: a hosted model is trained on files or shards: store the data first")
        claim(output / "run.json", record_of(_settings(config, stream), qa, dialogues), force=force)
        finished = output / ("adapter" if config.adapter_only else "model")
        if finished.exists():
            log.info("%s is already trained", finished)
            return finished
        # step 2: train and save
        if hosted is not None:
            questions = hosted_questions(dialogues, annotations, skip_bad=skip_bad)
            trained = trained_hosted(
                hosted, questions, config.training, output / "language",
                seed=config.seed, merge=not config.adapter_only, report_to=report_to,
            )  # fmt: skip
        else:
            own = OwnDialogues(dialogues, annotations, seed=config.seed, skip_bad=skip_bad)
            run = TrainingRun(
                folder=output,
                model=qa.model,
                processor=qa.processor,
                build=lambda: _without_grounding(config, VideoQA.from_pretrained(source).model),
                source=own if stream is None else StreamedDialogues(stream, config.seed),
                seed=config.seed,
                report_to=report_to,
                workers=workers,
            )
            trained = run_stages(stages, run)
        if processes.is_main():
            save_whole(trained, qa.processor if hosted is None else hosted.model.processor, finished)
        processes.wait()
        return finished


def _settings(config: FinetuneConfig, stream: VideoStream | None) -> dict[str, Any]:
    """The settings in the record of a run."""
    settings = to_mapping(config)
    if not config.reducers:
        del settings["reducers"]  # earlier runs have none in their record
    training = settings["training"]
    for newer, unused, *depends in _NEWER:
        if training[newer] == unused:
            for name in (newer, *depends):  # nor these
                del training[name]
    return settings if stream is None else {**settings, "stream": stream.name}


def streamed(name: Path, media: Path | None, fps: float | None) -> VideoStream:
    """The stream of a fine-tuning.

    Raises:
        InputError: if it cannot be opened, or options are given that belong to files.
    """
    if media is not None or fps is not None:
        raise InputError(f"{name}: a stream has its videos in it: leave --media and --fps out")
    return VideoStream(name, "train")


def _without_grounding(config: FinetuneConfig, model: Any) -> Any:
    """The model, whose grounding loss is taken away if the settings say so."""
    if not config.training.grounding:
        model.grounding = None
        model.config.loss = {**model.config.loss, "grounding_weight": 0.0}
    return model


def _check_own(config: FinetuneConfig, dialogues: Sequence[Dialogue]) -> None:
    """Refuses what only a hosted model takes, and what these dialogues (none of a stream) give no rows to.

    Raises:
        ConfigError: naming the field.
    """
    if config.training.base_kl_weight and dialogues and all(dialogue.media for dialogue in dialogues):
        raise ConfigError("base_kl_weight above 0 needs dialogues without a video or an image; there is none")
    require(not config.reducers, config, "reducers", "empty: a model of ours has the reducers of its configuration")
    training = config.training
    require(training.questions_per_video == 1, training, "questions_per_video", "1: each dialogue is one row")
