"""Training rows that pack several questions about one video after one visual prefix.

    one row    <s> <video> | question 1 answer 1 </s> | question 2 answer 2 </s> | ...
    segments    0     0    |          1               |          2               |

Each question attends to the prefix and to itself; its positions continue after the prefix. So a row gives the same
loss as its questions in separate rows, but the video is processed once.

B rows, L text positions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmllm.datasets.records import Dialogue, Question
from mmllm.errors import ConfigError, InputError
from mmllm.modalities.border import flat, together
from mmllm.modalities.inputs import ModalityInputs
from mmllm.modalities.video import VideoInputs
from mmllm.preprocessing.text_encoding import Encoded
from mmllm.processor import MmllmProcessor
from mmllm.tokens import IGNORED
from mmllm.train.orders import order_of

NAMES = "row_names"
"""Batch key of the rows' names; it is removed before the batch goes to the model."""


def pack(conversations: Sequence[Encoded], placeholder: int) -> dict[str, Tensor]:
    """Returns one row of `input_ids`, `labels` and `segment_ids` (L each) from conversations about the same video.

    Args:
        conversations: they must be equal up to the last placeholder of the video.
        placeholder: id of the placeholder.

    Raises:
        InputError: if the conversations differ before the end of the video, or have no video.
    """
    first = conversations[0].input_ids
    positions = (first == placeholder).nonzero()
    if not len(positions):
        raise InputError("questions can only be packed after a video, and they have none")
    shared = int(positions[-1]) + 1  # length of the common prefix
    ids, labels = [first[:shared]], [torch.full((shared,), IGNORED)]
    segments = [torch.zeros(shared, dtype=torch.long)]
    for number, encoded in enumerate(conversations, start=1):
        if not torch.equal(encoded.input_ids[:shared], first[:shared]):
            raise InputError("conversations that share a video must be equal up to the end of the video")
        ids.append(encoded.input_ids[shared:])
        labels.append(encoded.labels[shared:])
        segments.append(torch.full_like(ids[-1], number))
    return {"input_ids": torch.cat(ids), "labels": torch.cat(labels), "segment_ids": torch.cat(segments)}


def conversation(dialogue: Dialogue, processor: MmllmProcessor, duration_s: float | None) -> Encoded:
    """Returns a dialogue as token ids with labels on the answers, and with its times in the processor's format.

    Args:
        dialogue: all turns, with times in seconds.
        processor: encodes text and times.
        duration_s: length of the video, to which time tokens are relative; None if there is no video.
    """

    return processor.encode_conversation(_messages(dialogue, processor, duration_s))


def asked_media(
    media: Sequence[ModalityInputs], dialogue: Dialogue, processor: MmllmProcessor, duration_s: float | None
) -> tuple[ModalityInputs, ...]:
    """Returns inputs of media with the question about each, where a visual part of the model reads it.

    Args:
        media: inputs of each medium of the dialogue, in order.
        dialogue: the question about a medium is the text of the user's turn that holds it.
        processor: writes questions as ids, if its model reads them.
        duration_s: as in `conversation`.
    """
    if processor.question_reader is None:
        return tuple(media)
    questions = processor.questions_about(_messages(dialogue, processor, duration_s))
    return tuple(
        inputs.asked(processor.question_ids([question])) for inputs, question in zip(media, questions, strict=True)
    )


def _messages(dialogue: Dialogue, processor: MmllmProcessor, duration_s: float | None) -> list[dict[str, Any]]:
    """Returns a dialogue as chat messages, with its times in the processor's format."""

    def write(text: str) -> str:
        return text if duration_s is None else processor.writing.write(text, duration_s)

    return dialogue.messages(write)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One training row: text, and the media it is about."""

    name: str
    """Name for messages."""
    text: dict[str, Tensor]
    """`input_ids`, `labels` and, if questions are packed, `segment_ids`, L each."""
    media: tuple[ModalityInputs, ...] = ()
    """Model inputs of each medium, as a batch of one; media of the same modality are in the order of the text."""


class PackedQuestions(torch.utils.data.Dataset[Any]):
    """An endless shuffle of videos, each with some of its questions. Row n depends only on the seed and on n.

    Args:
        questions: all questions, in any order.
        processor: encodes questions and answers as token ids.
        load: returns the inputs of a video file as a batch of one (cached features or pixels).
        rows: number of rows.
        questions_per_row: at most so many questions of a video are packed in a row.
        seed: random seed of the draw.
        batch: rows of a batch, by which readers share shards.
        readers: see `order_of`.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        processor: MmllmProcessor,
        load: Callable[[Path], VideoInputs],
        *,
        rows: int,
        questions_per_row: int,
        seed: int,
        batch: int = 1,
        readers: int | None = None,
    ) -> None:
        if not questions:
            raise InputError("there is no question for training")
        if processor.question_reader is not None and questions_per_row > 1:
            raise ConfigError(
                "a part of the model reads the question before the LLM does, so questions cannot share a row: set "
                f"questions_per_video = 1 (it is {questions_per_row})"
            )
        self.processor = processor
        self.load = load
        self.rows = rows
        self.questions_per_row = questions_per_row
        self.seed = seed
        by_video: dict[str, list[Question]] = {}
        for question in questions:
            by_video.setdefault(question.vid, []).append(question)
        self.videos = [by_video[vid] for vid in sorted(by_video)]
        self.order = order_of([group[0].video for group in self.videos], seed, batch, readers)
        self.encoded: dict[str, Encoded] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Row:
        epoch, place, number = self.order.at(row)
        questions = self.videos[number]
        draw = np.random.default_rng((self.seed, epoch, place, 1))
        chosen = draw.permutation(len(questions))[: self.questions_per_row]
        encoded = [self._conversation(questions[i]) for i in chosen]
        first = questions[chosen[0]]
        assert first.video is not None
        videos = [self.load(first.video)]
        return Row(
            name=first.vid,
            text=pack(encoded, self.processor.video_token_id),
            media=asked_media(videos, first.dialogue(), self.processor, first.duration_s),
        )

    def _conversation(self, question: Question) -> Encoded:
        if question.question_id not in self.encoded:
            dialogue = question.dialogue()
            self.encoded[question.question_id] = conversation(dialogue, self.processor, question.duration_s)
        return self.encoded[question.question_id]


@dataclass(frozen=True, kw_only=True)
class RowCollator:
    """Makes model inputs from rows, with transformers' names: text padded on the right, media in the rows' order."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Returns the batch of the rows."""
        fill = {"input_ids": self.pad_token_id, "labels": IGNORED, "segment_ids": -1}
        batch: dict[str, Any] = {
            name: pad_sequence([row.text[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in fill.items()
            if name in rows[0].text
        }
        lengths = torch.tensor([len(row.text["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths.unsqueeze(1)).long()
        batch[NAMES] = [row.name for row in rows]
        return batch | flat(together(inputs for row in rows for inputs in row.media))
