"""One thread runs the LLM. Questions that fit together, and come within a short window, are answered as one batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from mmllm.inference.row_streaming import Row, answer_rows
from mmllm.serving.job_thread import JobThread
from mmllm.serving.jobs import Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.refusals import client_left

log = logging.getLogger(__name__)


class LlmThread(JobThread):
    """Answers jobs in the order in which they came.

    Args:
        answer_s: seconds after which an answer ends.
        metrics: counts what is done.
        rows: the most questions of a batch.
        positions: the most positions of a batch together, with filling: above, batches cost more than they save.
        window_s: how long a question waits for others that are on their way.
        expected: how many questions are being prepared.
        answered: called after each batch.
    """

    def __init__(
        self,
        *,
        answer_s: float,
        metrics: Metrics,
        rows: int = 16,
        positions: int = 4096,
        window_s: float = 0.02,
        expected: Callable[[], int] = lambda: 0,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self.answer_s, self.metrics, self.rows, self.positions = answer_s, metrics, rows, positions
        self.window_s, self.expected, self.answered = window_s, expected, answered
        self._batch_jobs: Sequence[Job] = ()
        super().__init__("mmllm-llm")

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self.thread.is_alive()

    @property
    def running(self) -> Sequence[Job]:
        """The questions that are being answered."""
        return self._batch_jobs

    def check(self, job: Job) -> None:
        """Does nothing: this process answers whatever its models can."""

    def close(self) -> None:
        """Ends the thread after the running batch."""
        super().close()
        self.thread.join()

    def _run(self) -> None:
        while (batch := self._batch()) is not None:
            abandoned = [job for job in batch if job.gone.is_set()]
            jobs = [job for job in batch if job not in abandoned]
            for job in abandoned:
                self.metrics.add("cancelled", reason="waiting")
                job.emit(client_left())
            if jobs:
                self._answer(jobs)
                self.answered()
            self._batch_jobs = ()

    def _batch(self) -> Sequence[Job] | None:
        """The next jobs that fit together; None once the thread is to end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            until_s = time.monotonic() + self.window_s
            while len(batch := self._fitting()) < self.rows and self.expected():
                remaining_s = until_s - time.monotonic()
                if remaining_s <= 0 or not batch[0].fits(batch[0]):
                    break
                self._changed.wait(remaining_s)
                if not self._waiting:  # all were dropped meanwhile
                    return ()
            for job in batch:
                self._waiting.remove(job)
            self._batch_jobs = batch
            return batch

    def _fitting(self) -> list[Job]:
        """The first waiting job, and others that fit to it."""
        first, batch = self._waiting[0], [self._waiting[0]]
        for job in list(self._waiting)[1:]:
            if len(batch) == self.rows:
                break
            if job.fits(first):
                size = job.prompts.size([other.prompt for other in (*batch, job)])
                batch += [job] if size <= self.positions else []
        return batch

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answers a batch; a job that fails changes no other, unless the LLM itself fails."""
        self.metrics.observe("batch_rows", len(jobs))
        until_s = time.monotonic() + self.answer_s
        rows = [self._row(job, until_s) for job in jobs]
        try:
            if (seed := jobs[0].question.seed) is not None:
                torch.manual_seed(seed)
            answer_rows(jobs[0].prompts, rows, **jobs[0].options)
        except Exception as problem:
            log.warning("a batch of %d questions failed: %s", len(jobs), type(problem).__name__)
            for job in jobs:
                job.emit(problem)
            return
        for job, row in zip(jobs, rows, strict=True):
            self.metrics.add("generated_tokens", row.tokens)
            self.metrics.add("prompt_tokens", row.cached, kind="cached")
            if row.first_s is not None:
                self.metrics.observe("first_token_seconds", row.first_s - job.began_s)
            if job.gone.is_set():
                self.metrics.add("cancelled", reason="answering")
            try:
                if row.problem is not None:
                    raise row.problem
                job.end(row.cut, row.tokens, row.cached, row.context)
            except Exception as problem:
                job.emit(problem)

    @staticmethod
    def _row(job: Job, until_s: float) -> Row:
        return Row(
            prompt=job.prompt,
            take=job.take,
            most_tokens=job.most_tokens,
            stopped=lambda: job.gone.is_set() or job.ending,
            until_s=until_s,
        )
