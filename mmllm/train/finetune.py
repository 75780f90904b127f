"""Fine-tuning a trained model on one's own videos: low-rank adapters on the LLM, projector and time tokens as they are.

OUTPUT/run.json        the settings, and a digest of every row and medium; a run is only continued by the same
OUTPUT/features/       features of the frozen encoder
OUTPUT/language/       checkpoints and metrics.jsonl
OUTPUT/model/          the fine-tuned model, or OUTPUT/adapter/ with the adapters alone
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.checkpoints.adapters import with_adapters
from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import dialogues_of, read_annotations
from mmllm.datasets.records import Dialogue
from mmllm.errors import InputError
from mmllm.fields import require, to_mapping
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.templates import named_system_prompt
from mmllm.runtime import processes
from mmllm.runtime.fingerprint import fingerprint
from mmllm.train.features import FeatureCache
from mmllm.train.recipes import LanguageTraining
from mmllm.train.record import claim, digest
from mmllm.train.rows import DialogueRows, MediaInputs, Shuffled, text_row
from mmllm.train.run import only_one, rows_of, save_whole, train_language

log = logging.getLogger(__name__)

SHOWN = 5
"""Problems of the data that a message lists."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTraining(LanguageTraining):
    """How the model is trained on; a dialogue is a row."""

    max_steps: int = 300
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    lora_rank: int = 16
    questions_per_video: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.questions_per_video == 1, self, "questions_per_video", "1: a dialogue is a row")
        require("encoder" in self.frozen, self, "frozen", "with the encoder among them")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What a fine-tuning depends on, beside its data."""

    model: str
    """Folder or hub id of the model that is trained on."""
    seed: int = 0
    adapter_only: bool = False
    """Save the adapters alone, not a whole model with them folded in."""
    training: FinetuneTraining = field(default_factory=FinetuneTraining)

    def __post_init__(self) -> None:
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
) -> Path:
    """Fine-tunes a model, going on where an earlier run with the same settings and data stopped.

    Args:
        config: what is trained and how.
        annotations: a file of any form that `read_annotations` knows; see `mmllm.datasets.dialogues` for own data.
        output: the run's folder.
        media: folder of the videos and images; by default, for own data, the file's own.
        skip_bad: leave bad rows out instead of refusing the file.
        force: go on although settings or data have changed.
        report_to: trackers of transformers.
        workers: processes that decode.

    Returns:
        The folder of the model, or of the adapters.

    Raises:
        InputError: if a row or a medium cannot be used; the message has the first ones.
        ConfigError: if the folder holds a run with other settings or other data; the message has the differences.
    """
    output.mkdir(parents=True, exist_ok=True)
    processes.wait()
    with only_one(output):
        dialogues = checked_dialogues(annotations, media, skip_bad=skip_bad)
        base = Path(config.model)
        source = str(base.resolve()) if base.is_dir() else config.model  # adapters remember where their model is
        qa = VideoQA.from_pretrained(source)
        told = {
            **to_mapping(config),
            "processes": processes.count(),
            "weights": fingerprint(qa.model),
            "rows": {one.record_id: _digest(one) for one in dialogues},
        }
        claim(output / "run.json", told, force=force)
        finished = output / ("adapter" if config.adapter_only else "model")
        if finished.exists():
            log.info("%s is trained already", finished)
            return finished
        training, model = config.training, qa.model
        writer = copy.copy(qa.processor)
        if training.system_prompt is not None:
            writer.system_prompt = named_system_prompt(training.system_prompt)
        cache = None
        inside = model.encoder_stage is not None
        if training.keep_features and not inside:
            cache = FeatureCache(output / "features", model, qa.processor)
            videos = [media.path for one in dialogues for media in one.media if media.kind == "video"]
            failed = cache.fill_together(videos, workers)
            _refuse([f"{video}: {problem}" for video, problem in failed.items()], annotations, skip_bad)
            dialogues = _usable(dialogues, failed, cache, writer, training, annotations, skip_bad)
        rows = DialogueRows(
            Shuffled(dialogues, config.seed),
            writer,
            MediaInputs(writer, cache),
            rows=rows_of(training),
            max_text_tokens=training.max_text_tokens,
        )

        def rebuild() -> Any:
            again = VideoQA.from_pretrained(source).model
            return with_adapters(again, training.lora_rank) if training.lora_rank else again

        trained = train_language(
            model, rows, writer, training, output / "language", rebuild,
            seed=config.seed, report_to=report_to, workers=0 if cache else workers, merge=not config.adapter_only,
        )  # fmt: skip
        if processes.is_main():
            save_whole(trained, qa.processor, finished)
        processes.wait()
        return finished


def checked_dialogues(annotations: Path, media: Path | None, *, skip_bad: bool) -> list[Dialogue]:
    """The dialogues of a file in which everything has been looked at: rows, media, times.

    Raises:
        InputError: if something is wrong with a row or a medium and bad ones are not to be skipped, or none is left.
    """
    found = check_annotations(annotations, media, policy="skip")
    _refuse(found["problems"], annotations, skip_bad)
    read = read_annotations(annotations, media, policy="skip")
    dialogues = dialogues_of(read).items
    if not dialogues:
        raise InputError(f"{annotations}: there is no dialogue to train on")
    return dialogues


def _usable(
    dialogues: Sequence[Dialogue],
    failed: dict[Path, str],
    cache: FeatureCache,
    writer: Any,
    training: FinetuneTraining,
    annotations: Path,
    skip_bad: bool,
) -> list[Dialogue]:
    """The dialogues that become rows; warns of words that the model's tokenizer does not know."""
    usable, problems = [], []
    unknown, total = Counter[str](), 0
    for one in dialogues:
        videos = [media.path for media in one.media if media.kind == "video"]
        if any(video in failed for video in videos):
            continue
        try:
            text = text_row(one, writer, [cache.load(video).lengths_s[0] for video in videos], training.max_text_tokens)
        except InputError as problem:
            problems.append(f"{one.record_id}: {problem}")
            continue
        usable.append(one)
        total += len(text["input_ids"])
        unknown[one.record_id] += int((text["input_ids"] == writer.tokenizer.unk_token_id).sum())
    _refuse(problems, annotations, skip_bad)
    if not usable:
        raise InputError(f"{annotations}: no dialogue is left to train on")
    if lost := unknown.total():
        worst = unknown.most_common(1)[0][0]
        log.warning("%d of %d tokens are words the model does not know, most of them in %s", lost, total, worst)
    return usable


def _refuse(problems: Sequence[str], annotations: Path, skip_bad: bool) -> None:
    if not problems:
        return
    shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
    if not skip_bad:
        raise InputError(f"{annotations}: {shown}. Mend them (mmllm check lists all), or leave them out: --skip-bad")
    log.warning("%s: left out are %s", annotations, shown)


def _digest(dialogue: Dialogue) -> str:
    """Changes with anything said, any time, and the name or size of a medium."""
    media = [f"{one.kind} {one.path.name} {_size(one.path)}" for one in dialogue.media]
    said = [f"{turn.role} {turn.stamped}" for turn in dialogue.turns]
    return digest("\n".join([*media, *said, str(dialogue.duration_s)]))


def _size(path: Path) -> int:
    return sum(1 for _ in path.iterdir()) if path.is_dir() else path.stat().st_size
