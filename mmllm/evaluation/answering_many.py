"""Answering questions about many videos: one object that is sent to worker processes and takes batches of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.columns import no_video, require_columns
from mmllm.datasets.records import Question
from mmllm.evaluation.run import encoded_or_reason, heard_and_answered
from mmllm.evaluation.samples import Sample
from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering


class AnswerQuestions:
    """Answers batches of questions about videos; questions about the same video in a batch cost one decoding.

    The model is loaded with the first batch, so that the object is small where it is sent to a process.

    ```python
    from ray.data import ActorPoolStrategy, from_items

    from mmllm.evaluation.answering_many import AnswerQuestions

    rows = from_items([{"video": "cook.mp4", "question": "When does he chop?"}])
    two = ActorPoolStrategy(size=2)
    done = rows.map_batches(AnswerQuestions, fn_constructor_args=["DIR"], compute=two)
    ```

    Args:
        model: folder or hub id of a model.
        max_new_tokens: most tokens of an answer.
        options: of `VideoQA.from_pretrained`, such as `reducers`.
    """

    def __init__(self, model: str, max_new_tokens: int = 64, **options: Any) -> None:
        self.model, self.max_new_tokens, self.options = str(model), max_new_tokens, options
        self._qa: VideoAnswering | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_qa": None}

    @property
    def qa(self) -> VideoAnswering:
        """The model."""
        if self._qa is None:
            self._qa = VideoQA.from_pretrained(self.model, **self.options)
            self._qa.max_new_tokens = self.max_new_tokens
        return self._qa

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with more columns, for B questions.

        Args:
            batch: `video` (B), paths of video files, also inside tar files, and `question` (B). If they are there, also
                `duration_s`, the annotated length or NaN, `history`, lists of earlier questions and answers in pairs,
                `system`, the row's own system prompt, and `audio`, whether it is heard (None if the row does not say).
                Other columns pass through.

        Returns:
            `text`, `raw` and `error` (B), texts; `spans` (B), lists of `[start_s, end_s]`; `fallback` (B), whether the
            answer has fewer than two times; `duration_s` (B), float64. With an error there is no answer.

        Raises:
            InputError: if a column is missing.
        """
        require_columns(batch, "video", "question")
        questions = [_question(batch, row) for row in range(len(batch["question"]))]
        by_video: dict[tuple[Path, str], list[Question]] = {}
        for question, value in zip(questions, batch["video"], strict=True):
            assert question.video is not None
            by_video.setdefault((question.video, no_video(value)), []).append(question)
        samples: dict[str, Sample] = {}
        for (video, missing), group in by_video.items():
            encoded, problem = (None, missing) if missing else encoded_or_reason(self.qa, video)
            with_lengths = group
            if encoded is not None:
                with_lengths = [replace(each, duration_s=each.duration_s or encoded.duration_s) for each in group]
            for sample in heard_and_answered(self.qa, missing or video, encoded, problem, with_lengths, {}):
                samples[sample.question_id] = sample
        return {**batch, **columns_of([samples[question.question_id] for question in questions])}


def _question(batch: Mapping[str, np.ndarray], row: int) -> Question:
    length_s = float(batch["duration_s"][row]) if "duration_s" in batch else np.nan
    history = batch["history"][row] if "history" in batch else ()
    return Question(
        question_id=str(row),
        vid=str(batch["video"][row]),
        question=str(batch["question"][row]),
        answer="",
        duration_s=None if np.isnan(length_s) else length_s,
        video=Path(str(batch["video"][row])),
        history=tuple((str(asked), str(said)) for asked, said in history),
        system=str(batch["system"][row]) if "system" in batch else "",
        audio=batch["audio"][row] if "audio" in batch else None,
    )


def columns_of(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """The columns that `AnswerQuestions` adds, for answered samples."""
    spans = np.empty(len(samples), dtype=object)  # lists of any length
    for row, sample in enumerate(samples):
        spans[row] = [span.to_json() for span in sample.prediction_spans]
    lengths_s = [np.nan if sample.duration_s is None else sample.duration_s for sample in samples]
    return {
        "text": np.array([sample.prediction_text for sample in samples], dtype=object),
        "spans": spans,
        "raw": np.array([sample.prediction_raw for sample in samples], dtype=object),
        "fallback": np.array([sample.fallback for sample in samples], dtype=bool),
        "duration_s": np.array(lengths_s, dtype=np.float64),
        "error": np.array([sample.error for sample in samples], dtype=object),
    }
