"""`--batching continuous`: answers join and leave the LLM between any two tokens. The counterpart of `LlmThread`."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mmllm.errors import ConfigError
from mmllm.inference.own_prompts import OwnPrompt, OwnPrompts
from mmllm.inference.plain_decoder import require_own_loop
from mmllm.inference.streaming import Cut
from mmllm.serving.continuous_loop import ContinuousLoop, require_transformers
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused, client_left

log = logging.getLogger(__name__)

_FIRST_ID = 1 << 24
"""Ids of visual tokens begin here; no vocabulary is as large."""
_POLL_S = 0.01
"""How often new questions are looked for while others are answered."""
_END_S = 10.0
"""Longest wait for the end of a thread."""


@dataclass(eq=False)
class _Answer:
    """An answer that is being written."""

    job: Job
    until_s: float
    """`time.monotonic()` at which it ends with the text so far."""
    tokens: int = 0


class ContinuousThreads:
    """Answers jobs as they come, a thread for each LLM.

    Args:
        answer_s: seconds after which an answer ends.
        metrics: counts what is done.
        positions: that the cache of an LLM holds, of all answers together.
        step_tokens: of prompts that are read between two tokens of other answers.

    Raises:
        ConfigError: if this version of transformers cannot do it.
    """

    alive = True
    """Whether questions are answered; an LLM's loop that has ended is begun again with the next question."""

    def __init__(self, *, answer_s: float, metrics: Metrics, positions: int = 16384, step_tokens: int = 512) -> None:
        require_transformers()
        self.answer_s, self.metrics, self.positions, self.step_tokens = answer_s, metrics, positions, step_tokens
        self._threads: dict[int, _LlmLoopThread] = {}
        self._lock = threading.RLock()

    @property
    def running(self) -> list[Job]:
        """The questions that are being answered."""
        return [job for thread in self._all() for job in thread.running]

    @property
    def waiting(self) -> int:
        """How many questions wait for the next step."""
        return sum(len(thread.waiting) for thread in self._all())

    def check(self, job: Job) -> None:
        """Refuses what this loop would answer in another way.

        Raises:
            Refused: naming the setting.
        """
        other = "continuous batching, with which this server was started, "
        if not isinstance(job.prompts, OwnPrompts):
            raise Refused(400, f"{other}runs no models of transformers' own layout", "bad_settings", "model")
        if job.decoding is not None:
            raise Refused(400, f"{other}writes a token at a time: leave decoding out", "bad_settings", "decoding")
        if job.question.temperature:
            raise Refused(400, f"{other}draws no words: leave temperature out", "bad_settings", "temperature")
        try:
            require_own_loop(job.prompts.qa)
        except ConfigError as problem:
            raise Refused(400, str(problem), "bad_settings") from None
        needed = job.prompt.positions + job.most_tokens
        if needed > self.positions:
            message = f"prompt and answer need {needed} positions, and the cache holds {self.positions}"
            raise Refused(400, message, "context_length_exceeded")

    def put(self, job: Job) -> None:
        """Adds a job."""
        llm = job.prompts.qa.model.language_model
        with self._lock:
            if id(llm) not in self._threads:
                self._threads[id(llm)] = _LlmLoopThread(self)
                weakref.finalize(llm, self._forget, id(llm))  # the model was dropped
            self._threads[id(llm)].put(job)

    def drop_waiting(self) -> list[Job]:
        """Takes all waiting jobs away, and tells the running ones to end."""
        return [job for thread in self._all() for job in thread.drop_waiting()]

    def close(self) -> None:
        """Ends the threads, and waits until no LLM runs any more."""
        for thread in self._all():
            thread.close()
            thread.thread.join(_END_S)

    def _all(self) -> list[_LlmLoopThread]:
        with self._lock:
            return list(self._threads.values())

    def _forget(self, number: int) -> None:
        with self._lock:
            thread = self._threads.pop(number, None)
        if thread is not None:
            thread.close()


class _LlmLoopThread:
    """Gives questions to the loop of an LLM, and what comes of their answers to who has asked."""

    def __init__(self, around: ContinuousThreads) -> None:
        self.around = around
        self.waiting: deque[Job] = deque()
        self._answers: dict[str, _Answer] = {}
        self._loop: ContinuousLoop | None = None
        self._changed = threading.Condition()
        self._closed = False
        self.thread = threading.Thread(target=self._run, daemon=True, name="mmllm-continuous")
        self.thread.start()

    @property
    def running(self) -> list[Job]:
        return [answer.job for answer in list(self._answers.values())]

    def put(self, job: Job) -> None:
        with self._changed:
            self.waiting.append(job)
            self._changed.notify()

    def drop_waiting(self) -> list[Job]:
        with self._changed:
            dropped = list(self.waiting)
            self.waiting.clear()
            for job in self.running:
                job.ending = True
        return dropped

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

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
            while not (self.waiting or self._answers or self._closed):
                self._changed.wait()
            begun = [self.waiting.popleft() for _ in range(len(self.waiting))]
        for job in begun:
            self._begin(job)
        return not self._closed

    def _begin(self, job: Job) -> None:
        """Hands a question to the loop."""
        try:
            if job.gone.is_set():
                self.around.metrics.add("cancelled", reason="waiting")
                raise client_left()
            prompts, prompt = job.prompts, job.prompt
            assert isinstance(prompts, OwnPrompts)  # others were refused
            assert isinstance(prompt, OwnPrompt)
            if self._loop is None or not self._loop.alive:
                self._loop = ContinuousLoop(
                    prompts.qa.model.language_model,
                    first_id=_FIRST_ID,
                    positions=self.around.positions,
                    step_tokens=self.around.step_tokens,
                )
            ids, is_visual, visual = prompts.laid_out(prompt)
            if len(visual):
                encoded = [medium.encoded for medium in prompt.media]
                ids = ids.masked_scatter(is_visual, self._loop.ids.ids_of(encoded, visual).to(ids.device))
            name = self._loop.begin(ids.tolist(), most_tokens=job.most_tokens, ends=prompts.qa.stop_tokens)
            self._answers[name] = _Answer(job, time.monotonic() + self.around.answer_s)
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
                    self.around.metrics.observe("first_token_seconds", time.monotonic() - job.began_s)
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
        metrics = self.around.metrics
        metrics.add("generated_tokens", answer.tokens)
        if answer.job.gone.is_set():
            metrics.add("cancelled", reason="answering")
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
