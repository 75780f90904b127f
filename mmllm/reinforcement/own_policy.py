"""Our own models as policies: one placeholder for a video, times in the model's own form, features kept on disk.

B rows, L text positions, K positions of the longest answer, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmllm.datasets.records import Question
from mmllm.inference.answering import VideoQA
from mmllm.modalities.border import placeholders, together
from mmllm.modalities.inputs import Media
from mmllm.reinforcement.policy import Said
from mmllm.tokens import IGNORED
from mmllm.train.packing import asked_media
from mmllm.train.rows import MediaLoader

KEPT = 64
"""Videos whose inputs are held in memory."""


class OwnPolicy:
    """A model of ours with questions, each about one video; see `Policy`.

    Args:
        qa: the model and its processor.
        questions: each with the path of its video.
        media: loads videos, or their features.
    """

    def __init__(self, qa: VideoQA, questions: Sequence[Question], media: MediaLoader) -> None:
        self.qa = qa
        self.questions = questions
        self.tokenizer: Any = qa.processor.tokenizer
        self.unsaid: Sequence[int] = sorted(placeholders(qa.model.config).values())
        self._load = lru_cache(maxsize=KEPT)(media.load)

    def prompt(self, row: int) -> list[int]:
        """Ids of a row's prompt, with one placeholder for the video."""
        question = self.questions[row]
        encoded = self.qa.prompt(question.question, self.duration_s(row), question.history, question.system)
        return encoded.input_ids.tolist()

    def duration_s(self, row: int) -> float:
        """The annotated length of a row's video, by which its times are written; else the decoded one."""
        annotated = self.questions[row].duration_s
        return self._video(row).lengths_s[0] if annotated is None else annotated

    def sampled(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
        """New ids B K; a video that several rows ask about in the same words is encoded once."""
        different = list(dict.fromkeys(rows))
        first = torch.tensor([list(rows).index(row) for row in different], device=ids.device)
        which = torch.tensor([different.index(row) for row in rows], device=ids.device)
        sequences = model.visual_sequences(self._media(different, model.input_device), ids[first], mask[first])
        chosen = {placeholder: sequence.select(which) for placeholder, sequence in sequences.items()}
        return model.generate(input_ids=ids, attention_mask=mask, sequences=chosen, **options)[:, ids.shape[1] :]

    def logits(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, count: int) -> Tensor:
        """B K V: what is predicted for each of the `count` last ids."""
        labels = torch.full_like(ids, IGNORED)
        labels[:, -count:] = ids[:, -count:].masked_fill(~mask[:, -count:].bool(), IGNORED)
        media = self._media(rows, ids.device)
        out = model(input_ids=ids, attention_mask=mask, labels=labels, media=media, answer_logits=count + 1)
        return out.logits[:, :-1]

    def read(self, row: int, ids: Sequence[int]) -> Said:
        """A generated answer; a text without two times has no readable ones."""
        answer = self.qa.processor.decode(list(ids), self.duration_s(row))
        if answer.fallback:
            return Said(text=answer.text, spans=None)
        named = [f"{span.start_s:.2f} - {span.end_s:.2f} seconds" for span in answer.spans[:1]]
        spans = tuple((span.start_s, span.end_s) for span in answer.spans)
        return Said(text=" ".join([*named, answer.text]).strip(), spans=spans)

    def _video(self, row: int) -> Any:
        """Inputs of a row's video, as a batch of one."""
        question = self.questions[row]
        return self._load("video", question.video, question.audio)

    def _media(self, rows: Sequence[int], device: torch.device | str) -> Media:
        """Inputs of the videos of several rows, with the questions about them where a part of the model reads those."""
        inputs = [
            medium
            for row in rows
            for medium in asked_media(
                [self._video(row)], self.questions[row].dialogue(), self.qa.processor, self.duration_s(row)
            )
        ]
        return {name: medium.to(device) for name, medium in together(inputs).items()}
