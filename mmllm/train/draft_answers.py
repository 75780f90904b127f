"""Training rows of drafts: the questions of a run, with their own answers or with those that the target gives.

A text is drafted as the target writes it. So its greedy answers are written once, each as ids behind its prompt, and
kept in a file of lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmllm.datasets.records import Question
from mmllm.inference.answering import VideoQA
from mmllm.modalities.video import VideoInputs
from mmllm.preprocessing.text_encoding import Encoded
from mmllm.runtime import processes
from mmllm.runtime.files import append_text, drop_half_line
from mmllm.runtime.progress import Progress
from mmllm.tokens import IGNORED
from mmllm.train.data import RunData
from mmllm.train.packing import PackedQuestions
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun


class DraftRows:
    """The rows of a draft's training; see `RowSource`.

    Args:
        data: questions about videos.
        qa: the target.
        file: gets the target's answers.
    """

    def __init__(self, data: RunData, qa: VideoQA, file: Path) -> None:
        self.data, self.qa, self.file = data, qa, file

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs; see `RowSource.rows`."""
        rows = self.data.rows(replace(run, model=self.qa.model), training, keep_features=keep_features)
        packed: Any = rows.dataset
        if getattr(training, "answers", "data") == "target":
            packed.encoded |= self._answered(packed)
        return rows

    def _answered(self, packed: PackedQuestions) -> dict[str, Encoded]:
        """Id of each question -> its prompt with the target's answer behind it."""
        with processes.main_first():
            drop_half_line(self.file)
            answers = self._read()
            missing = [
                questions
                for questions in packed.videos
                if any(question.question_id not in answers for question in questions)
            ]
            with Progress("answer", len(missing), "videos") as progress:
                for questions in missing:
                    given = answers_of(self.qa, questions, packed.load)
                    lines = [{"id": name, "prompt": prompt, "ids": ids} for name, (prompt, ids) in given.items()]
                    append_text(self.file, "".join(json.dumps(line) + "\n" for line in lines))
                    answers |= given
                    progress.advance()
        return {name: _labelled(*ids) for name, ids in answers.items()}

    def _read(self) -> dict[str, tuple[list[int], list[int]]]:
        """The prompts and answers that the file holds."""
        if not self.file.exists():
            return {}
        lines = (json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines())
        return {line["id"]: (line["prompt"], line["ids"]) for line in lines}


@torch.no_grad()
def answers_of(
    qa: VideoQA, questions: Sequence[Question], load: Callable[[Path], VideoInputs]
) -> dict[str, tuple[list[int], list[int]]]:
    """Id of each question -> ids of its prompt and of the target's greedy answer, with the end token if there is one.

    Args:
        qa: the target.
        questions: about the same video.
        load: gives the inputs of a video.
    """
    assert questions[0].video is not None
    video, answers = load(questions[0].video), {}
    for question in questions:
        duration_s = video.lengths_s[0] if question.duration_s is None else question.duration_s
        prompt = qa.prompt(question.question, duration_s).input_ids.to(qa.model.input_device)
        reads = qa.processor.question_reader is not None
        asked = video.asked(qa.processor.question_ids([question.question])) if reads else video
        ids = qa.model.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt)[None],
            media={VideoInputs.modality: asked},
            **qa.generation_options({}),
        )
        answers[question.question_id] = (prompt.tolist(), ids[0, len(prompt) :].tolist())
    return answers


def _labelled(prompt: list[int], answer: list[int]) -> Encoded:
    """A prompt with an answer behind it, which has labels."""
    labels = [IGNORED] * len(prompt) + answer
    return Encoded(input_ids=torch.tensor(prompt + answer), labels=torch.tensor(labels))
