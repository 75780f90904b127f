"""Dialogues about one's own videos: checked before anything is trained, then rows of a training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import dialogues_of, read_annotations
from mmllm.datasets.records import Dialogue
from mmllm.errors import InputError
from mmllm.train.data import writer_of
from mmllm.train.features import FeatureCache
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled, text_row
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun

log = logging.getLogger(__name__)

SHOWN = 5
"""Problems of the data that a message lists."""


class OwnDialogues:
    """Dialogues of one's own, as rows; what cannot be used is refused, or left out.

    Args:
        dialogues: all of them.
        annotations: their file, for messages.
        seed: of their order.
        skip_bad: leave bad ones out instead of refusing the file.
    """

    def __init__(self, dialogues: Sequence[Dialogue], annotations: Path, *, seed: int, skip_bad: bool) -> None:
        self.dialogues = dialogues
        self.annotations = annotations
        self.seed = seed
        self.skip_bad = skip_bad

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """As many rows as a training takes; see `RowSource`."""
        writer, dialogues, cache = writer_of(run.processor, training), self.dialogues, None
        if keep_features:
            cache = FeatureCache(run.folder / "features", run.model, run.processor)
            videos = [media.path for row in dialogues for media in row.media if media.kind == "video"]
            failed = cache.fill_together(videos, run.workers)
            _refuse([f"{video}: {problem}" for video, problem in failed.items()], self.annotations, self.skip_bad)
            dialogues = self._usable(failed, cache, writer, training.max_text_tokens)
        dataset = DialogueRows(
            Shuffled(dialogues, self.seed),
            writer,
            MediaLoader(writer, cache),
            rows=training.rows,
            max_text_tokens=training.max_text_tokens,
        )
        return Rows(dataset=dataset, workers=0 if cache else run.workers)

    def _usable(
        self, failed: dict[Path, str], cache: FeatureCache, writer: Any, max_text_tokens: int
    ) -> list[Dialogue]:
        """The dialogues that become rows; warns of words that the model's tokenizer does not know."""
        usable, problems = [], []
        unknown, total = Counter[str](), 0
        for dialogue in self.dialogues:
            videos = [media.path for media in dialogue.media if media.kind == "video"]
            if any(video in failed for video in videos):
                continue
            try:
                text = text_row(dialogue, writer, [cache.load(video).lengths_s[0] for video in videos], max_text_tokens)
            except InputError as problem:
                problems.append(f"{dialogue.record_id}: {problem}")
                continue
            usable.append(dialogue)
            total += len(text["input_ids"])
            unknown[dialogue.record_id] += int((text["input_ids"] == writer.tokenizer.unk_token_id).sum())
        _refuse(problems, self.annotations, self.skip_bad)
        if not usable:
            raise InputError(f"{self.annotations}: no dialogue is left to train on")
        if lost := unknown.total():
            worst = unknown.most_common(1)[0][0]
            log.warning("%d of %d tokens are words the model does not know, most of them in %s", lost, total, worst)
        return usable


def checked_dialogues(annotations: Path, media: Path | None, *, skip_bad: bool) -> list[Dialogue]:
    """The dialogues of a file in which everything has been looked at: rows, media, times.

    Raises:
        InputError: if something is wrong with a row or a medium and bad ones are not to be skipped, or none is left.
    """
    report = check_annotations(annotations, media, policy="skip")
    _refuse(report["problems"], annotations, skip_bad)
    read = read_annotations(annotations, media, policy="skip")
    dialogues = dialogues_of(read).items
    if not dialogues:
        raise InputError(f"{annotations}: there is no dialogue to train on")
    return dialogues


def _refuse(problems: Sequence[str], annotations: Path, skip_bad: bool) -> None:
    if not problems:
        return
    first = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
    if not skip_bad:
        raise InputError(f"{annotations}: {first}. Mend them (mmllm check lists all), or leave them out: --skip-bad")
    log.warning("%s: left out are %s", annotations, first)
