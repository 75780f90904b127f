"""What a model answers behind each reducer, clip by clip: the encoder sees a clip once for all of them.

Every line of `trials.jsonl` is one setting on one clip. What is there is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmllm.datasets.folder_rates import folder_rates
from mmllm.datasets.records import Question
from mmllm.errors import InputError, MmllmError
from mmllm.evaluation.metrics import sample_iou
from mmllm.evaluation.run import answered, encoded_or_reason, read_clips
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.prompt_costs import experts, prompts_read
from mmllm.runtime.files import append_text, drop_half_line
from mmllm.runtime.progress import Progress
from mmllm.tuning.settings import ReducerSettings, Setting

UNREDUCED = ""
"""The flag that stands for the model with every token."""


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """One setting on one clip, on average over the clip's questions."""

    ious: dict[str, float]
    """Question -> IoU."""
    tokens: float
    """Positions of the LLM's prompt, on average over its layers."""
    operations: float | None
    """Floating point operations of the LLM's pass over the prompt; None for an LLM of experts."""

    @property
    def miou(self) -> float:
        """The clip's mIoU."""
        return float(np.mean(list(self.ious.values())))


@dataclass
class ReducerAnswers:
    """Answers behind reducers, which are looked up in a file or asked for.

    Args:
        settings: the model.
        scout: the model that encodes clips for every reducer.
        questions: clip -> its questions, each with a true span.
        file: `trials.jsonl`.
        workers: processes that decode.
    """

    settings: ReducerSettings
    scout: VideoAnswering
    questions: dict[str, list[Question]]
    file: Path
    workers: int = 1
    results: dict[tuple[str, str], ClipResult] = field(default_factory=dict)
    """(Flag, clip) -> result."""
    refused: dict[str, str] = field(default_factory=dict)
    """Flag -> why a reducer cannot work on this model's tokens, which only shows when it is tried."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Clip -> why it cannot be read. Nobody is asked about it."""

    def __post_init__(self) -> None:
        drop_half_line(self.file)
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else ():
            self._take(json.loads(line))
        self._variants: dict[str, VideoAnswering] = {UNREDUCED: self.settings.qa}

    def _take(self, row: dict[str, Any]) -> None:
        flag, vid = row["reducer"], row["clip"]
        if "unreadable" in row:
            self.unreadable[vid] = row["unreadable"]
        elif "refused" in row:
            self.refused[flag] = row["refused"]
        else:
            self.results[flag, vid] = ClipResult(ious=row["ious"], tokens=row["tokens"], operations=row["operations"])

    def _write(self, flag: str | None, vid: str, **values: Any) -> None:
        """Appends a line, and takes what it says."""
        row = {"reducer": flag, "clip": vid, **values}
        append_text(self.file, json.dumps(row, ensure_ascii=False) + "\n")
        self._take(row)

    def of(self, flag: str, clips: Sequence[str]) -> list[ClipResult]:
        """The results of a setting on those of the clips that can be read."""
        return [self.results[flag, vid] for vid in clips if vid not in self.unreadable]

    def measure(self, settings: Sequence[Setting], clips: Sequence[str], what: str) -> None:
        """Asks about clips behind these settings and with every token; skips what is there already.

        Args:
            settings: those that turn out not to work are noted in `refused`.
            clips: their names.
            what: the work, for the progress.

        Raises:
            InputError: if none of the clips can be read.
        """
        flags = [UNREDUCED, *(setting.flag for setting in settings if setting.flag not in self.refused)]
        missing = {vid: [flag for flag in flags if (flag, vid) not in self.results] for vid in clips}
        missing = {vid: open_flags for vid, open_flags in missing.items() if open_flags and vid not in self.unreadable}
        asked = [question for vid in missing for question in self.questions[vid]]
        self.settings.qa.processor.folder_rates = folder_rates(asked)  # all variants share their processor
        videos = read_clips(self.scout, {vid: self.questions[vid][0].video for vid in missing}, self.workers)
        with closing(videos), Progress(what, sum(map(len, missing.values())), "trials of a clip") as bar:
            for vid, clip in videos:
                encoded, problem = (None, clip) if isinstance(clip, str) else encoded_or_reason(self.scout, clip)
                if encoded is None:
                    self._write(None, vid, unreadable=problem)
                for flag in missing[vid]:
                    if encoded is not None and flag not in self.refused:
                        self._ask(flag, vid, encoded)
                    bar.advance()
        if all(vid in self.unreadable for vid in clips):
            raise InputError(f"none of the first {len(clips)} clips can be read: {self.unreadable[clips[0]]}")

    @torch.no_grad()
    def _ask(self, flag: str, vid: str, encoded: EncodedVideo) -> None:
        """Asks about a clip behind a setting."""
        questions, decoder = self.questions[vid], self.settings.qa.decoder
        try:
            if flag not in self._variants:
                self._variants[flag] = self.settings.qa.with_stages(reducers=[flag])
            variant = self._variants[flag]
            with prompts_read(decoder) as read:
                samples = list(answered(variant, variant.encode_again(encoded), "", questions, {}))
        except MmllmError as problem:
            if flag == UNREDUCED:
                raise
            self._write(flag, vid, refused=str(problem))
            return
        config: Any = decoder.config
        self._write(
            flag,
            vid,
            ious={sample.question_id: sample_iou(sample) for sample in samples},
            tokens=read.tokens / len(questions),
            operations=None if experts(config) else read.operations(config) / len(questions),
        )
