"""Dialogues about own videos: they are checked before training starts, and then become training rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.datasets.bad_rows import listed, report_problems
from mmllm.datasets.check import inspect
from mmllm.datasets.folder_rates import with_rate
from mmllm.datasets.formats import dialogues_of
from mmllm.datasets.records import Dialogue
from mmllm.datasets.shards import with_split
from mmllm.errors import InputError
from mmllm.train.features import FeatureCache
from mmllm.train.row_texts import writer_of
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled, text_row
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun

log = logging.getLogger(__name__)


class OwnDialogues:
    """Makes rows from own dialogues; bad dialogues are errors, or are left out.

    Args:
        dialogues: all dialogues.
        annotations: their file, for messages.
        seed: random seed of their order.
        skip_bad: leave out bad dialogues; otherwise they are errors.
    """

    def __init__(self, dialogues: Sequence[Dialogue], annotations: Path, *, seed: int, skip_bad: bool) -> None:
        self.dialogues = dialogues
        self.annotations = annotations
        self.seed = seed
        self.skip_bad = skip_bad

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs; see `RowSource`."""
        writer, dialogues, cache = writer_of(run.processor, training), self.dialogues, None
        if keep_features:
            cache = FeatureCache(run.folder / "features", run.model, run.processor)
            videos = [medium.path for dialogue in dialogues for medium in dialogue.media if medium.kind == "video"]
            failed = cache.fill_together(videos, run.workers)
            report_problems(
                [f"{video}: {problem}" for video, problem in failed.items()], self.annotations, self.skip_bad
            )
            dialogues = self._usable(failed, cache, writer, training.max_text_tokens)
        dataset = DialogueRows(
            Shuffled(dialogues, self.seed, training.batch_size, training.readers),
            writer,
            MediaLoader(writer, cache),
            rows=training.rows,
            max_text_tokens=training.max_text_tokens,
        )
        return Rows(dataset=dataset, workers=0 if cache else run.workers)

    def _usable(
        self, failed: dict[Path, str], cache: FeatureCache, writer: Any, max_text_tokens: int
    ) -> list[Dialogue]:
        """Returns the dialogues that can be rows. Warns if the tokenizer has no token for some of their words."""
        usable, problems = [], []
        unknown = Counter[str]()  # number of unknown tokens in each dialogue
        total = 0
        for dialogue in self.dialogues:
            videos = [medium.path for medium in dialogue.media if medium.kind == "video"]
            if any(video in failed for video in videos):
                continue
            try:
                if writer.sound is None and any(medium.audio for medium in dialogue.media):
                    raise InputError("audio is true, and this model does not hear: it has no audio encoder")
                durations_s = [cache.load(video).lengths_s[0] for video in videos]
                text = text_row(dialogue, writer, durations_s, max_text_tokens)
            except InputError as problem:
                problems.append(f"{dialogue.record_id}: {problem}")
                continue
            usable.append(dialogue)
            total += len(text["input_ids"])
            unknown[dialogue.record_id] += int((text["input_ids"] == writer.tokenizer.unk_token_id).sum())
        report_problems(problems, self.annotations, self.skip_bad)
        if not usable:
            raise InputError(f"{self.annotations}: no dialogue can be used for training")
        if num_unknown := unknown.total():
            worst = unknown.most_common(1)[0][0]
            log.warning("%d of %d tokens are unknown to the model, most of them in %s", num_unknown, total, worst)
        return usable


def checked_dialogues(
    annotations: Path, media: Path | None, *, skip_bad: bool, fps: float | None = None
) -> list[Dialogue]:
    """Returns the dialogues of a file after checking all rows, media and times.

    Args:
        annotations: the file.
        media: the folder that paths are relative to.
        skip_bad: leave out bad dialogues; otherwise they are errors.
        fps: images a second of folders of frames, for rows that have no `fps`.

    Raises:
        InputError: if a row or a medium is bad and `skip_bad` is False, or if no dialogue remains.
    """
    annotations = with_split(annotations, "train")
    inspection = inspect(annotations, media, fps=fps)
    refused = inspection.summary["refused"]
    report_problems(refused, annotations, skip_bad)
    notes = [problem for problem in inspection.summary["problems"] if problem not in refused]
    if notes or inspection.summary["notes"]:
        log.warning("%s: %s", annotations, listed([*notes, *inspection.summary["notes"]]))
    rows = dialogues_of(inspection.usable)
    if not rows.items:
        reason = f": {rows.bad[0]}" if rows.bad else ""
        raise InputError(f"{annotations}: it has no dialogue for training{reason}")
    return with_rate(rows.items, fps)
