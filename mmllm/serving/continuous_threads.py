"""`--batching continuous`: answers join and leave the LLM between any two tokens. The counterpart of `LlmThread`."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from mmllm.errors import ConfigError
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import require_own_loop
from mmllm.serving.continuous_answers import LlmLoopThread
from mmllm.serving.continuous_loop import require_transformers
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused

_END_S = 10.0
"""Longest wait for the end of a thread."""


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
        self.positions = positions
        self._settings: dict[str, Any] = {
            "answer_s": answer_s, "metrics": metrics, "positions": positions, "step_tokens": step_tokens
        }  # fmt: skip
        self._threads: dict[int, LlmLoopThread] = {}
        self._lock = threading.RLock()

    @property
    def running(self) -> list[Job]:
        """The questions that are being answered."""
        return [job for thread in self._all() for job in thread.running]

    @property
    def waiting(self) -> int:
        """How many questions wait for the next step."""
        return sum(thread.waiting for thread in self._all())

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
                self._threads[id(llm)] = LlmLoopThread(**self._settings)
                weakref.finalize(llm, self._forget, id(llm))  # the model was dropped
            self._threads[id(llm)].put(job)

    def drop_waiting(self) -> list[Job]:
        """Takes all waiting jobs away, and tells the running ones to end."""
        return [job for thread in self._all() for job in thread.drop_waiting()]

    def close(self) -> None:
        """Ends the threads, and waits until no LLM runs any more."""
        threads = self._all()
        for thread in threads:
            thread.close()
        for thread in threads:
            thread.thread.join(_END_S)

    def _all(self) -> list[LlmLoopThread]:
        with self._lock:
            return list(self._threads.values())

    def _forget(self, number: int) -> None:
        with self._lock:
            thread = self._threads.pop(number, None)
        if thread is not None:
            thread.close()
