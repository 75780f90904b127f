"""From a question to its answer: its model, its media, its prompt, and then the LLM. All of it off the event loop.

event loop | threads: model, kept videos, prompt | thread of the LLM: words
           | threads: download                   |
           | threads: decode in a child, encode  |      nobody waits here for whoever does not need it
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from mmllm.app.asker import Asker, NobodyWaits
from mmllm.app.methods import refuse_files
from mmllm.inference.conversations import prompts_of
from mmllm.serving.addresses import MediaAddresses
from mmllm.serving.continuous_threads import ContinuousThreads
from mmllm.serving.decoding_choice import method_of, require_one_video
from mmllm.serving.engine_threads import EngineThreads
from mmllm.serving.jobs import Event, Job
from mmllm.serving.limits import ServeLimits
from mmllm.serving.llm_thread import LlmThread
from mmllm.serving.media import QuestionMedia
from mmllm.serving.metrics import Metrics
from mmllm.serving.models import Models
from mmllm.serving.preparation import Preparation
from mmllm.serving.question import MediaPart, Question
from mmllm.serving.refusals import Refused, client_left, refusal_of
from mmllm.serving.speech import Speech

_PREPARED, _DOWNLOADED = 8, 8
"""Questions that are prepared at once, and files that are downloaded at once."""


class Answering:
    """Everything between a question and its words.

    Args:
        models: what is served.
        addresses: where media come from.
        folder: of the server's files; its name is in no message.
        limits: upper bounds.
        metrics: counts what is done.
        decoders: files that are decoded at once.
        engine: address of an engine that runs the LLM in place of this process; see `EngineThreads`.
        continuous: options of `ContinuousThreads`: `positions`, `step_tokens`; None for `LlmThread`.
        batching: options of `LlmThread`: `rows`, `positions`, `window_s`.
    """

    def __init__(
        self,
        models: Models,
        addresses: MediaAddresses,
        folder: Path,
        limits: ServeLimits,
        metrics: Metrics,
        *,
        decoders: int = 2,
        engine: str | None = None,
        continuous: Mapping[str, int] | None = None,
        **batching: float,
    ) -> None:
        self.models, self.addresses, self.folder = models, addresses, folder
        self.limits, self.metrics = limits, metrics
        self.media = QuestionMedia(addresses, limits, metrics, decoders)
        self.shelf = self.media.shelf
        self.under_way = self._preparing = 0
        self.llm: LlmThread | EngineThreads | ContinuousThreads
        if engine is not None:
            self.llm = EngineThreads(engine, answer_s=limits.answer_s, metrics=metrics)
        elif continuous is not None:
            self.llm = ContinuousThreads(answer_s=limits.answer_s, metrics=metrics, **continuous)
        else:
            self.llm = LlmThread(
                answer_s=limits.answer_s,
                metrics=metrics,
                expected=lambda: self._preparing,
                answered=self.shelf.fit,  # videos have kept the LLM's cache of themselves
                **batching,  # type: ignore[arg-type]
            )
        self._threads = ThreadPoolExecutor(_PREPARED, thread_name_prefix="mmllm-prepare")
        self._downloads = ThreadPoolExecutor(_DOWNLOADED, thread_name_prefix="mmllm-download")
        self._decoding = ThreadPoolExecutor(decoders, thread_name_prefix="mmllm-decode")
        metrics.gauges |= {
            "queue": lambda: self.llm.waiting,
            "running": lambda: len(self.llm.running),
            "kept_videos": lambda: len(self.shelf),
            "kept_bytes": lambda: self.shelf.bytes,
            "models_loaded": lambda: len(models.loaded),
        }

    @asynccontextmanager
    async def asked(self, question: Question, gone: threading.Event) -> AsyncIterator[tuple[Job, asyncio.Queue[Event]]]:
        """A question that was checked and waits for the LLM, and what comes of its answer.

        Args:
            question: what is asked.
            gone: set when nobody waits for the answer any more; it is set at the end of the block.

        Raises:
            Refused: if the question cannot be answered; nothing has come then.
        """
        self.models.require(question.model)
        if self.under_way >= self.limits.waiting:
            raise Refused(429, f"{self.under_way} questions are under way: ask again later", "queue_full")
        if not self.llm.alive:
            raise Refused(503, "the LLM's thread has ended: the server has to be started again", "engine_dead")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self.under_way += 1
        ready: Preparation | None = None
        try:
            self._preparing += 1
            try:
                ready = await self._begun(question, Asker(gone), lambda event: _emit(loop, events, event))
                job = await self._completed(ready)
            finally:
                self._preparing -= 1
            self.metrics.add("prompt_tokens", job.prompt.positions - _visual(job), kind="text")
            self.metrics.add("prompt_tokens", _visual(job), kind="visual")
            self.llm.put(job)
            yield job, events
        except NobodyWaits:
            self.metrics.add("cancelled", reason="preparing")
            raise client_left() from None
        except Exception as problem:
            raise refusal_of(problem, self.folder) from problem
        finally:
            gone.set()
            self.under_way -= 1
            if ready is not None:
                self.models.release(ready.model)

    def cut_short(self) -> None:
        """Ends all answers: running ones with the text so far, waiting ones unanswered."""
        for job in self.llm.drop_waiting():
            job.emit(Refused(503, "the server ends", "draining"))

    def close(self) -> None:
        """Ends the threads and the processes that read files."""
        self.cut_short()
        for threads in (self._threads, self._downloads, self._decoding):
            threads.shutdown(wait=False, cancel_futures=True)
        self.llm.close()
        self.media.reading.close()

    async def _begun(self, question: Question, asker: Asker, emit: Callable[[Event], None]) -> Preparation:
        """A question with its model, and with its job if all its media are kept."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._begin, question, asker, emit)

    async def _completed(self, ready: Preparation) -> Job:
        """The job of a question, whose media are fetched and encoded."""
        if ready.job is not None:
            return ready.job
        run = asyncio.get_running_loop().run_in_executor
        for part in ready.missing:
            if part.place not in ready.files:
                await run(self._downloads, self._download, ready, part)
            await run(self._decoding, self._encode, ready, part)
        return await run(self._threads, self._job, ready)

    # --- in a thread ------------------------------------------------------------------------------------------

    def _begin(self, question: Question, asker: Asker, emit: Callable[[Event], None]) -> Preparation:
        asker.require()
        model = self.models.taken(question.model)
        try:
            refuse_files(question.stages)
            qa = model.variants.of(question.stages)
            method = None if question.decoding is None else method_of(question.decoding, model, qa)
            ready = Preparation(
                question=question, asker=asker, emit=emit, model=model, prompts=prompts_of(qa), method=method
            )
            for part in ready.parts:
                if not self.addresses.is_foreign(part):
                    self._find(ready, part)
            if not ready.missing:
                ready.job = self._job(ready)
        except BaseException:
            self.models.release(model)
            raise
        return ready

    def _find(self, ready: Preparation, part: MediaPart) -> None:
        """The file of a part, and the video if it is kept."""
        with self._blamed_on(part, ready):
            ready.files[part.place] = self.addresses.stored(part)
            if (medium := self.media.kept(part, ready)) is not None:
                ready.media[part.place] = medium

    def _download(self, ready: Preparation, part: MediaPart) -> None:
        with self._blamed_on(part, ready):
            ready.files[part.place] = self.addresses.stored(part)

    def _encode(self, ready: Preparation, part: MediaPart) -> None:
        with self._blamed_on(part, ready):
            ready.media[part.place] = self.media.medium(part, ready)

    @contextmanager
    def _blamed_on(self, part: MediaPart, ready: Preparation) -> Iterator[None]:
        """Work on a part for somebody who still waits; what goes wrong is told with its place."""
        ready.asker.require()
        try:
            yield
        except Exception as problem:
            ready.asker.require()  # reading ends with an error when the asker leaves
            raise refusal_of(problem, self.folder, part.place) from problem

    def _job(self, ready: Preparation) -> Job:
        ready.asker.require()
        question, prompts = ready.question, ready.prompts
        prompt = prompts.prompt(ready.turns, question.times_of)
        if ready.method is not None:
            require_one_video(ready.method, prompt)
        job = Job(
            question=question,
            prompts=prompts,
            prompt=prompt,
            speech=Speech(lambda ids: prompts.text(prompt, ids), question.stops),
            most_tokens=min(question.most_tokens or prompts.qa.max_new_tokens, self.limits.new_tokens),
            gone=ready.asker.gone,
            emit=ready.emit,
            decoding=ready.method,
        )
        self.llm.check(job)
        return job


def _emit(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    """Hands an event to the loop; a loop that has ended needs none."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _visual(job: Job) -> int:
    """Visual tokens of a job's prompt."""
    usage = job.prompt.usage
    return usage["video_tokens"] + usage["image_tokens"]
