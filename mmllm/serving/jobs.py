"""A question on its way through the server, and what comes back of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmllm.inference.prompts import Prompt, Prompts
from mmllm.inference.streaming import Cut
from mmllm.interfaces import Decoding
from mmllm.serving.answer_forms import as_json
from mmllm.serving.question import Question
from mmllm.serving.speech import Speech
from mmllm.times.answers import Answer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of an answer."""

    piece: str
    """The last piece of its text."""
    answer: Answer
    cut: Cut | None
    tokens: int
    """Of the answer."""
    cached: int
    """Positions of the prompt that the LLM did not read, since its cache of them was kept."""

    @property
    def finish_reason(self) -> FinishReason:
        """As OpenAI's clients read it."""
        return "stop" if self.cut is None else "length"


Event = str | Ending | BaseException
"""A piece of text, the end of the answer, or why there is none."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A question that is ready for the LLM."""

    question: Question
    prompts: Prompts[Any]
    prompt: Prompt
    speech: Speech
    most_tokens: int
    gone: threading.Event
    """Set when nobody waits for the answer any more."""
    emit: Callable[[Event], None]
    """Takes what comes; called in the thread of the LLM."""
    began_s: float = field(default_factory=time.monotonic)
    decoding: Decoding | None = None
    """How the answer is written; one token a pass if None."""
    ending: bool = False
    """Set when the server ends: the answer ends with the text so far."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of `generate`: how words are chosen and written."""
        written = {} if self.decoding is None else {"decoding": self.decoding}
        if not self.question.temperature:
            return {"do_sample": False, **written}
        drawn = {"temperature": self.question.temperature, "top_p": self.question.top_p, "top_k": 0}
        return {"do_sample": True, **drawn, **written}

    def fits(self, other: Job) -> bool:
        """Whether both can be answered as one batch: the same model and stages, and nothing that is done row by row."""
        jobs = (self, other)
        if self.prompts.qa is not other.prompts.qa or any(job.question.temperature or job.decoding for job in jobs):
            return False
        return self.prompts.fits(self.prompt, other.prompt)

    def take(self, token: int) -> bool:
        """The next id of the answer; True if the answer ends with it."""
        piece = self.speech.add(token)
        if piece and self.question.keys is None:
            self.emit(piece)
        return self.speech.ended

    def end(self, cut: Cut | None, tokens: int, cached: int, context: Mapping[str, Any] | None = None) -> None:
        """Emits the end of the answer; the arguments are those of a `Row`."""
        piece = self.speech.end()
        ids, rest = self.speech.kept()
        answer = self.prompts.answer(self.prompt, ids)
        decoding = None if self.decoding is None else self.decoding.said
        answer = replace(answer, text=f"{answer.text}{rest}".strip(), decoding=decoding, context=context)
        if self.question.keys is not None:
            piece = as_json(answer, self.question.keys)
        self.emit(Ending(piece=piece, answer=answer, cut=cut, tokens=tokens, cached=cached))
