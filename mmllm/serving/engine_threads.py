"""An engine such as vLLM runs the LLM: prompts go to it as embeddings, and ids come back.

    question -> decoded, encoded, reduced, embedded here -> POST {engine}/completions -> ids -> text and spans here

The engine serves the folder that `mmllm export` wrote, under the name by which clients ask for the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmllm.errors import ConfigError
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import require_plain
from mmllm.inference.streaming import Cut
from mmllm.serving.engine_requests import asked, cached_of, ids_of
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import Refused, client_left

_QUESTIONS = 64
"""Questions that the engine is asked at once; it makes batches of them."""


class EngineThreads:
    """Asks an engine, a thread for each question; the counterpart of `LlmThread`.

    Args:
        url: its address up to the version.
        answer_s: seconds after which an answer ends.
        metrics: counts what is done.
    """

    alive = True
    """Whether questions are answered; an engine that is gone is told with each question."""

    def __init__(self, url: str, *, answer_s: float, metrics: Metrics) -> None:
        self.url, self.answer_s, self.metrics = url.rstrip("/"), answer_s, metrics
        self.running: list[Job] = []
        self._waiting: list[Job] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_QUESTIONS, thread_name_prefix="mmllm-engine")

    @property
    def waiting(self) -> int:
        """How many questions wait for a thread."""
        return len(self._waiting)

    def check(self, job: Job) -> None:
        """Refuses what the engine would answer in another way.

        Raises:
            Refused: naming the setting.
        """
        if not isinstance(job.prompts, OwnPrompts):
            raise Refused(400, "models of transformers' own layout are asked at the engine itself", "bad_settings")
        if job.decoding is not None:
            raise Refused(400, "decoding: the engine that runs the LLM has its own", "bad_settings", "decoding")
        try:
            require_plain(job.prompts.qa)
        except ConfigError as problem:
            raise Refused(400, str(problem), "bad_settings") from None

    def put(self, job: Job) -> None:
        """Adds a job."""
        with self._lock:
            self._waiting.append(job)
        self._threads.submit(self._answered, job)

    def drop_waiting(self) -> list[Job]:
        """Takes all waiting jobs away, and tells the running ones to end."""
        with self._lock:
            dropped, self._waiting = self._waiting, []
            for job in self.running:
                job.ending = True
        return dropped

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- in a thread ------------------------------------------------------------------------------------------

    def _answered(self, job: Job) -> None:
        with self._lock:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            self.running.append(job)
        try:
            if job.gone.is_set():
                self.metrics.add("cancelled", reason="waiting")
                raise client_left()
            self._answer(job)
        except Exception as problem:
            job.emit(problem)
        finally:
            with self._lock:
                self.running.remove(job)

    def _answer(self, job: Job) -> None:
        until_s = time.monotonic() + self.answer_s
        tokens, cached, cut = 0, 0, None
        with asked(self.url, job) as chunks:
            for chunk in chunks:
                cached = cached_of(chunk) or cached
                for token in ids_of(chunk):
                    if not tokens:
                        self.metrics.observe("first_token_seconds", time.monotonic() - job.began_s)
                    tokens += 1
                    if job.take(token):
                        break
                cut = _cut(job, chunk, until_s) or cut
                if job.speech.ended or cut in ("stopped", "time"):  # behind a cut by tokens, the usage comes
                    break
        self.metrics.add("generated_tokens", tokens)
        self.metrics.add("prompt_tokens", cached, kind="cached")
        if job.gone.is_set():
            self.metrics.add("cancelled", reason="answering")
        job.end(cut, tokens, cached)


def _cut(job: Job, chunk: Mapping[str, Any], until_s: float) -> Cut | None:
    """Why an answer ends here before its end."""
    if job.gone.is_set() or job.ending:
        return "stopped"
    if any(choice.get("finish_reason") == "length" for choice in chunk["choices"]):
        return "tokens"
    return "time" if time.monotonic() > until_s else None
