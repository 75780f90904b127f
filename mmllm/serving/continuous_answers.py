"""The thread between an LLM's loop and those who have asked: it begins answers, hands on their words, and ends them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mmllm.inference.own_prompts import OwnPrompt, OwnPrompts
from mmllm.inference.streaming import Cut
from mmllm.serving.continuous_loop import ContinuousLoop
from mmllm.serving.job_thread import JobThread
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused, client_left

log = logging.getLogger(__name__)

_FIRST_ID = 1 << 24
"""Ids of visual tokens begin here; no vocabulary is as large."""
_POLL_S = 0.01
"""How often new questions are looked for while others are answered."""


@dataclass(eq=False)
class _Answer:
    """An answer that is being written."""

    job: Job
    until_s: float
    """`time.monotonic()` at which it ends with the text so far."""
    tokens: int = 0


class LlmLoopThread(JobThread):
    """Gives questions to the loop of an LLM, and what comes of their answers to who has asked.

    Args:
        answer_s: seconds after which an answer ends.
        metrics: counts what is done.
        positions: as `ContinuousLoop` takes it.
        step_tokens: as `ContinuousLoop` takes it.
    """

    def __init__(self, *, answer_s: float, metrics: Metrics, positions: int, step_tokens: int) -> None:
        self.answer_s, self.metrics, self.positions, self.step_tokens = answer_s, metrics, positions, step_tokens
        self._answers: dict[str, _Answer] = {}
        self._loop: ContinuousLoop | None = None
        super().__init__("mmllm-continuous")

    @property
    def running(self) -> list[Job]:
        """The questions that are being answered."""
        return [answer.job for answer in list(self._answers.values())]

    # --- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._took():
            self._take()
            self._cut()
        for name in list(self._answers):
            self._end(name, "stopped")
        if self._loop is not None:
            self._loop.close()

    def _took(self) -> bool:
        """Waits until there is something to do, and begins new answers; False once the thread is to end."""
        with self._changed:
            while not (self._waiting or self._answers or self._closed):
                self._changed.wait()
            begun = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for job in begun:
            self._begin(job)
        return not self._closed

    def _begin(self, job: Job) -> None:
        """Hands a question to the loop."""
        try:
            if job.gone.is_set():
                self.metrics.add("cancelled", reason="waiting")
                raise client_left()
            prompts, prompt = job.prompts, job.prompt
            assert isinstance(prompts, OwnPrompts)  # others were refused
            assert isinstance(prompt, OwnPrompt)
            if self._loop is None or not self._loop.alive:
                self._loop = ContinuousLoop(
                    prompts.qa.model.language_model,
                    first_id=_FIRST_ID,
                    positions=self.positions,
                    step_tokens=self.step_tokens,
                )
            ids, is_visual, visual = prompts.laid_out(prompt)
            if len(visual):
                encoded = [medium.encoded for medium in prompt.media]
                ids = ids.masked_scatter(is_visual, self._loop.ids.ids_of(encoded, visual).to(ids.device))
            name = self._loop.begin(ids.tolist(), most_tokens=job.most_tokens, ends=prompts.qa.stop_tokens)
            self._answers[name] = _Answer(job, time.monotonic() + self.answer_s)
        except Exception as problem:
            job.emit(problem)

    def _take(self) -> None:
        """Hands on what has come."""
        if not self._answers:
            return
        assert self._loop is not None
        said = self._loop.next(_POLL_S)
        while said is not None:
            answer = self._answers.get(said.name)
            if answer is not None and said.failed:
                self._failed(said.name, _dead())
            elif answer is not None:
                self._give(said.name, answer, said.ids, said.finished)
            said = self._loop.next(0.0)
        if not self._loop.alive:
            log.warning("the loop that runs the LLM has ended")
            for name in list(self._answers):
                self._failed(name, _dead())

    def _give(self, name: str, answer: _Answer, ids: Sequence[int], finished: bool) -> None:
        job = answer.job
        enough = False
        try:
            for token in ids[answer.tokens :]:
                if not answer.tokens:
                    self.metrics.observe("first_token_seconds", time.monotonic() - job.began_s)
                answer.tokens += 1
                if enough := job.take(token):
                    break
        except Exception as problem:  # an answer that fails changes no other
            self._failed(name, problem)
            return
        ended = enough or ids[-1] in job.prompts.qa.stop_tokens
        if ended or finished:
            self._end(name, None if ended else "tokens")

    def _cut(self) -> None:
        """Ends answers that nobody waits for, or that take too long."""
        for name, answer in list(self._answers.items()):
            if answer.job.gone.is_set() or answer.job.ending:
                self._end(name, "stopped")
            elif time.monotonic() > answer.until_s:
                self._end(name, "time")

    def _end(self, name: str, cut: Cut | None) -> None:
        answer = self._removed(name)
        self.metrics.add("generated_tokens", answer.tokens)
        if answer.job.gone.is_set():
            self.metrics.add("cancelled", reason="answering")
        try:
            answer.job.end(cut, answer.tokens, 0)  # the loop does not say what it has shared
        except Exception as problem:
            answer.job.emit(problem)

    def _failed(self, name: str, problem: Exception) -> None:
        self._removed(name).job.emit(problem)

    def _removed(self, name: str) -> _Answer:
        assert self._loop is not None
        self._loop.end(name)
        return self._answers.pop(name)


def _dead() -> Refused:
    return Refused(503, "the loop that runs the LLM has ended; it begins again with the next question", "engine_dead")
