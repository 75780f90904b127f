"""Video LLMs of transformers as policies: shortened prompts with the tower's tokens, times in the family's own words.

A group of answers is drawn from one prefill of its prompt. Their logits are computed row by row, each with its own
length: no family needs rows of equal frames, and nothing is padded.

B rows, L text positions, K positions of the longest answer, V vocabulary
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmllm.datasets.records import Question
from mmllm.hosting.narrowing import HostedPrompt
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_video import HostedVideo
from mmllm.reinforcement.policy import Said

KEPT = 64
"""Videos whose visual tokens are held in memory."""


class HostedPolicy:
    """A hosted model with questions, each about one video; see `Policy`.

    Args:
        qa: the model with its reducers, its processor and its way of asking.
        questions: each with the path of its video.
    """

    def __init__(self, qa: HostedVideoQA, questions: Sequence[Question]) -> None:
        self.qa = qa
        self.questions = questions
        self.tokenizer: Any = qa.prompting.tokenizer
        ids = qa.model.family.token_ids(qa.model.config).values()
        self.unsaid: Sequence[int] = sorted({token for token in ids if token is not None})
        self._video = lru_cache(maxsize=KEPT)(self.qa.encode_evaluating)
        self._prompt = lru_cache(maxsize=KEPT)(self._prepared)

    def prompt(self, row: int) -> list[int]:
        """Ids of a row's prompt, without those of dropped visual tokens."""
        return self._prompt(row).inputs["input_ids"][0].tolist()

    def duration_s(self, row: int) -> float:
        """The annotated length of a row's video, to which answers are clipped; else the decoded one."""
        annotated = self.questions[row].duration_s
        return self._of_row(row).duration_s if annotated is None else annotated

    def sampled(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
        """New ids B K; the answers to a prompt are drawn together."""
        answers: dict[int, list[Tensor]] = {}
        for row in dict.fromkeys(rows):
            prompt = self._prompt(row)
            count = list(rows).count(row)
            drawn = self.qa.model.generate(prompt, num_return_sequences=count, **options)
            answers[row] = list(drawn[:, prompt.inputs["input_ids"].shape[1] :])
        new = [answers[row].pop(0) for row in rows]
        return pad_sequence(new, batch_first=True, padding_value=self.tokenizer.pad_token_id)

    def logits(self, model: Any, rows: Sequence[int], ids: Tensor, mask: Tensor, count: int) -> Tensor:
        """B K V: what is predicted for each of the `count` last ids; zeros at padding."""
        parts = []
        can_give_some = "logits_to_keep" in inspect.signature(self.qa.model.model.forward).parameters
        for number, row in enumerate(rows):
            length = int(mask[number, -count:].sum())
            answer = ids[number : number + 1, ids.shape[1] - count :][:, :length]
            arguments = self._prompt(row).arguments()
            some = {"logits_to_keep": length + 1} if can_give_some else {}
            logits = model(**_followed(arguments, answer), **some, use_cache=False).logits[0, -length - 1 : -1]
            parts.append(torch.nn.functional.pad(logits, (0, 0, 0, count - length)))
        return torch.stack(parts)

    def read(self, row: int, ids: Sequence[int]) -> Said:
        """A generated answer."""
        answer = self.qa.answer_of(self._of_row(row), list(ids), self.duration_s(row))
        if answer.fallback:
            return Said(text=answer.raw, spans=None)
        return Said(text=answer.raw, spans=tuple((span.start_s, span.end_s) for span in answer.spans))

    def _of_row(self, row: int) -> HostedVideo:
        return self._video(str(self.questions[row].video))

    @torch.no_grad()
    def _prepared(self, row: int) -> HostedPrompt:
        question, video = self.questions[row], self._of_row(row)
        prompt = self.qa.prompt(video, question.question, question.history, question.system)
        return self.qa.model.prepare(self.qa.moved(prompt), video.features)


def _followed(arguments: dict[str, Any], answer: Tensor) -> dict[str, Any]:
    """Arguments of `forward` of a prompt of one row, with an answer (int64, 1 G) behind it."""
    steps = torch.arange(1, answer.shape[1] + 1, device=answer.device)
    before = arguments["position_ids"]
    whole = {**arguments, "position_ids": torch.cat([before, before[..., -1:] + steps], dim=-1)}
    for name, value in arguments.items():
        if name == "input_ids":
            whole[name] = torch.cat([value, answer], dim=1)
        elif isinstance(value, Tensor) and name != "position_ids":
            more = torch.ones_like(answer) if name == "attention_mask" else torch.zeros_like(answer)
            whole[name] = torch.cat([value, more.to(value.dtype)], dim=1)
    return whole
