"""Training rows of a hosted model: a video with one or several of its questions, as its own `forward` takes them.

    one row    video, frames' times | question 1, answer 1 | question 2, answer 2 | ...
    segments            0           |          1           |          2           |

Each question sees the video and itself, at the positions that it would have alone, so the loss is that of single rows.
The vision tower is frozen: it sees a video once, and reducers choose among its tokens as they do when it is asked.

B = 1 row, N prompt length, K positions of the row after reducers, G ids of an answer, Q questions
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.datasets.records import Question
from mmllm.errors import ConfigError, InputError
from mmllm.hosting.encoding import ROW_INPUTS
from mmllm.hosting.narrowing import NO_LABEL, HostedPrompt
from mmllm.inference.hosted import PLAIN, HostedVideoQA
from mmllm.inference.hosted_video import HostedVideo
from mmllm.modeling.placeholders import block_mask
from mmllm.times.answers import absent_text
from mmllm.train.orders import order_of
from mmllm.train.packing import NAMES

KEPT = 64
"""Videos whose visual tokens are held in memory."""


class HostedRows(torch.utils.data.Dataset[Any]):
    """An endless shuffle of videos, each with some of its questions. Row n depends only on the seed and on n.

    Args:
        qa: the model, its processor and its reducers.
        questions: each with the path of its video.
        rows: number of rows.
        questions_per_row: at most so many questions of a video are packed in a row.
        seed: random seed of the draw.
        max_text_tokens: a question whose row would have more text is refused; visual tokens are not counted.
        keep: hold visual tokens of videos in memory; otherwise the tower sees a video each time.

    Raises:
        ConfigError: if questions are to share a row, and the model's layers cannot do that.
    """

    def __init__(
        self,
        qa: HostedVideoQA,
        questions: Sequence[Question],
        *,
        rows: int,
        questions_per_row: int,
        seed: int,
        max_text_tokens: int,
        keep: bool = True,
    ) -> None:
        if questions_per_row > 1:
            require_packing(qa.model.config)
        self.qa, self.rows, self.seed = qa, rows, seed
        self.questions_per_row, self.max_text_tokens = questions_per_row, max_text_tokens
        self.end = end_of_answers(qa)
        by_video: dict[tuple[str, Any], list[Question]] = {}
        for question in questions:
            by_video.setdefault((str(question.video), question.audio), []).append(question)
        groups = [by_video[key] for key in sorted(by_video, key=str)]
        # a question of its own is a row of its own: all are seen equally often
        self.groups = groups if questions_per_row > 1 else [[question] for group in groups for question in group]
        self.order = order_of([group[0].video for group in self.groups], seed, batch=1)
        self.video = lru_cache(maxsize=KEPT if keep else 1)(self.qa.encode_evaluating)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        epoch, place, number = self.order.at(row)
        group = self.groups[number]
        draw = np.random.default_rng((self.seed, epoch, place, 1))
        chosen = [group[i] for i in draw.permutation(len(group))[: self.questions_per_row]]
        names = ", ".join(question.question_id for question in chosen)
        return {**self.inputs(chosen), NAMES: [names]}

    def inputs(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Arguments of the model's `forward` for questions about the same video.

        Raises:
            InputError: if one of them has too much text, or they differ before the end of the video.
        """
        assert questions[0].video is not None
        video = self.video(questions[0].video)
        prompts = [self._answered(video, question) for question in questions]
        return packed(prompts, set(self.qa.model.family.token_ids(self.qa.model.config).values()), self.qa.model.model)

    def _answered(self, video: HostedVideo, question: Question) -> HostedPrompt:
        """The shortened prompt of a question with its answer behind it, and labels on the answer."""
        timed = bool(question.absent or question.truth().spans)
        setting = None if timed else PLAIN
        prompt = self.qa.prompt(video, question.question, question.history, question.system, setting)
        tokenizer = self.qa.prompting.tokenizer
        text = self.qa.prompting.plain(answer_text(self.qa, video, question))
        answer = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], self.end]])
        whole = followed(prompt, answer)
        placeholders = set(self.qa.model.family.token_ids(self.qa.model.config).values())
        count = sum(int(token) not in placeholders for token in whole["input_ids"][0])
        if count > self.max_text_tokens:
            raise InputError(
                f"{question.question_id}: its text has {count} tokens, more than max_text_tokens = "
                f"{self.max_text_tokens}; the times of frames and the template are counted"
            )
        with torch.no_grad():
            return self.qa.model.prepare(self.qa.moved(whole), video.features)


def answer_text(qa: HostedVideoQA, video: HostedVideo, question: Question) -> str:
    """The answer that is learned: true spans in the form that the family's prompt asks for, then the sentence.

    Times are on the clock of the prompt, which begins at the first frame where nothing in the prompt tells times.
    """
    truth = question.truth()
    if question.absent:
        return absent_text(truth.text)
    if not truth.spans:
        return qa.written(truth.text, video)
    form = qa.model.family.answer_form
    seconds = [
        [f"{max(0.0, time_s - video.offset_s):.1f}" for time_s in (span.start_s, span.end_s)] for span in truth.spans
    ]
    spans = ", ".join(form.format(start=start, end=end) for start, end in seconds)
    return f"{spans}. {qa.written(truth.text, video)}".strip()


def end_of_answers(qa: HostedVideoQA) -> int:
    """The id that the chat template writes behind an answer; the first of the ids that end one if it writes none.

    Raises:
        ConfigError: if nothing ends an answer.
    """
    if not qa.stop_tokens:
        raise ConfigError("neither the tokenizer nor the generation settings of this model say what ends an answer")
    tokenizer, mark = qa.prompting.tokenizer, "mmllm"
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "?"), ("assistant", mark))
    ]
    try:
        behind = qa.prompting.processor.apply_chat_template(messages, tokenize=False).rpartition(mark)[2]
    except Exception:  # a template is a program, and may want a video in each conversation
        return qa.stop_tokens[0]
    places = {token: behind.find(tokenizer.convert_ids_to_tokens(token)) for token in qa.stop_tokens}
    written = [token for token in qa.stop_tokens if places[token] >= 0]
    return min(written, key=places.__getitem__) if written else qa.stop_tokens[0]


def followed(prompt: Mapping[str, Any], answer: Tensor) -> dict[str, Any]:
    """A prompt of one row with an answer (int64, 1 G) behind it, labelled."""
    behind = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    whole = dict(prompt)
    whole.setdefault("attention_mask", torch.ones_like(prompt["input_ids"]))
    for name in ROW_INPUTS:
        if whole.get(name) is not None:
            more = behind.get(name, whole[name].new_zeros(answer.shape))
            whole[name] = torch.cat([whole[name], more], dim=1)
    whole["labels"] = torch.cat([torch.full_like(prompt["input_ids"], NO_LABEL), answer], dim=1)
    return whole


def packed(prompts: Sequence[HostedPrompt], placeholders: set[int | None], model: Any) -> dict[str, Any]:
    """Arguments of `forward` for shortened prompts of the same video, one behind the other.

    Where a family can give some logits only, they are asked for from the first label on: a long video then costs
    nothing in the LM head.

    Args:
        prompts: of one row each, with labels.
        placeholders: ids of visual tokens.
        model: transformers' model, for the type of the mask.

    Raises:
        InputError: if the prompts differ before the end of the video.
    """
    first = prompts[0].inputs
    is_visual = torch.isin(first["input_ids"][0], torch.tensor([token for token in placeholders if token is not None]))
    shared = int(is_visual.nonzero()[-1]) + 1 if len(prompts) > 1 else 0
    for prompt in prompts[1:]:
        if not torch.equal(prompt.inputs["input_ids"][:, :shared], first["input_ids"][:, :shared]):
            raise InputError(
                "questions that share a video must be equal up to its end; give them the same system prompt"
            )
    row = {
        name: torch.cat([value[..., :shared], *(prompt.inputs[name][..., shared:] for prompt in prompts)], dim=-1)
        for name, value in first.items()
    }
    if len(prompts) > 1:
        lengths = [prompt.inputs["input_ids"].shape[1] - shared for prompt in prompts]
        numbers = torch.arange(len(prompts) + 1, device=row["input_ids"].device)
        segments = numbers.repeat_interleave(torch.tensor([shared, *lengths], device=numbers.device)).unsqueeze(0)
        row["attention_mask"] = block_mask(row["attention_mask"], segments, model.dtype)
    arguments = {**prompts[0].arguments(), **row, "use_cache": False}
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return arguments
    labels = row["labels"]
    begin = max(0, int((labels[0] != NO_LABEL).nonzero()[0]) - 1)  # the position from which the first one is predicted
    return {**arguments, "labels": labels[:, begin:], "logits_to_keep": labels.shape[1] - begin}


def require_packing(config: Any) -> None:
    """Refuses a model whose layers cannot keep questions of one row apart.

    Raises:
        ConfigError: naming the layers or the attention.
    """
    text = config.get_text_config()
    others = sorted({kind for kind in getattr(text, "layer_types", None) or () if kind != "full_attention"})
    if others:
        raise ConfigError(
            f"questions_per_video above 1: layers of {config.model_type!r} with {', '.join(others)} cannot keep the "
            "questions of a row apart: set questions_per_video = 1"
        )
    attention = getattr(text, "_attn_implementation", None) or "sdpa"
    if attention not in ("sdpa", "eager"):
        raise ConfigError(
            f"questions_per_video above 1 needs a mask that {attention} does not take: set questions_per_video = 1, or "
            "load the model with attn_implementation='sdpa'"
        )


class OneRow:
    """The batch of one row: rows of hosted models are never padded, a step adds up as many as it has."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The row itself."""
        assert len(rows) == 1
        return dict(rows[0])
