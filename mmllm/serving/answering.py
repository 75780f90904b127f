"""From a question to its answer: its model, its media, its prompt, and then the LLM. All of it off the event loop.

event loop | threads: load, decode in a child, encode, prompt | thread of the LLM: words
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mmllm.app.methods import refuse_files
from mmllm.app.shelf import Shelf
from mmllm.app.watching import View, Watcher
from mmllm.inference.conversations import prompts_of
from mmllm.inference.prompts import Medium, Prompts, Turn
from mmllm.serving.addresses import MediaAddresses
from mmllm.serving.continuous_threads import ContinuousThreads
from mmllm.serving.decoding_choice import method_of, require_one_video
from mmllm.serving.engine_threads import EngineThreads
from mmllm.serving.jobs import Event, Job
from mmllm.serving.limits import ServeLimits
from mmllm.serving.llm_thread import LlmThread
from mmllm.serving.metrics import Metrics
from mmllm.serving.models import LoadedModel, Models
from mmllm.serving.question import MediaPart, Question, Saying
from mmllm.serving.reading_pool import ReadingPool
from mmllm.serving.refusals import Refused, client_left, refusal_of
from mmllm.serving.speech import Speech

_THREADS = 8
"""Questions that are prepared at once; those about kept videos do not wait for those that are decoded."""


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
        self.reading = ReadingPool(decoders)
        self.shelf = Shelf(limits.kept_videos, limits.kept_bytes)
        self.watcher = Watcher(self.shelf, self.reading, limits.video)
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
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mmllm-prepare")
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
        model: LoadedModel | None = None
        try:
            self._preparing += 1
            try:
                model, job = await loop.run_in_executor(
                    self._threads, self._prepared, question, gone, lambda event: _emit(loop, events, event)
                )
            finally:
                self._preparing -= 1
            self.metrics.add("prompt_tokens", job.prompt.positions - _visual(job), kind="text")
            self.metrics.add("prompt_tokens", _visual(job), kind="visual")
            self.llm.put(job)
            yield job, events
        except Refused:
            raise
        except Exception as problem:
            raise refusal_of(problem, self.folder) from problem
        finally:
            gone.set()
            self.under_way -= 1
            if model is not None:
                self.models.release(model)

    def cut_short(self) -> None:
        """Ends all answers: running ones with the text so far, waiting ones unanswered."""
        for job in self.llm.drop_waiting():
            job.emit(Refused(503, "the server ends", "draining"))

    def close(self) -> None:
        """Ends the threads and the processes that read files."""
        self.cut_short()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.llm.close()
        self.reading.close()

    # --- in a thread ------------------------------------------------------------------------------------------

    def _prepared(
        self, question: Question, gone: threading.Event, emit: Callable[[Event], None]
    ) -> tuple[LoadedModel, Job]:
        """The job of a question, and its model, which the caller releases."""
        _require_wanted(gone)
        model = self.models.taken(question.model)
        try:
            refuse_files(question.stages)
            qa = model.variants.of(question.stages)
            method = None if question.decoding is None else method_of(question.decoding, model, qa)
            prompts = prompts_of(qa)
            turns = [self._turn(saying, prompts, model.name, question, gone) for saying in question.sayings]
            _require_wanted(gone)
            prompt = prompts.prompt(turns, question.times_of)
            if method is not None:
                require_one_video(method, prompt)
            job = Job(
                question=question,
                prompts=prompts,
                prompt=prompt,
                speech=Speech(lambda ids: prompts.text(prompt, ids), question.stops),
                most_tokens=min(question.most_tokens or qa.max_new_tokens, self.limits.new_tokens),
                gone=gone,
                emit=emit,
                decoding=method,
            )
            self.llm.check(job)
        except BaseException as problem:
            self.models.release(model)
            if isinstance(problem, Exception):
                raise refusal_of(problem, self.folder) from problem
            raise
        return model, job

    def _turn(
        self, saying: Saying, prompts: Prompts[Any], model: str, question: Question, gone: threading.Event
    ) -> Turn:
        content: list[str | Medium] = []
        for part in saying.parts:
            _require_wanted(gone)
            if isinstance(part, str):
                content.append(part)
                continue
            try:
                content.append(self._medium(part, prompts, model, question))
            except Exception as problem:
                raise refusal_of(problem, self.folder, part.place) from problem
        return Turn(role=saying.role, content=tuple(content))

    def _medium(self, part: MediaPart, prompts: Prompts[Any], model: str, question: Question) -> Medium:
        stored = self.addresses.stored(part)
        if self.addresses.kind(part, stored) == "image":
            return Medium(kind="image", encoded=prompts.picture(self.reading.picture(stored.path, self.limits.video)))
        look, qa = part.look, prompts.qa
        own = min(qa.processor.num_frames, self.limits.frames)
        view = View(
            content=stored.digest,
            model=model,
            num_frames=look.num_frames or (own if look.fps is None else self.limits.frames),
            fps=look.fps,
            start_s=look.start_s,
            end_s=look.end_s,
            chosen=look.num_frames is not None,
        )
        encoded, seconds = self.watcher.watch(qa, stored.path, view, question.stages)
        self.metrics.add("videos", kind="decoded" if "decode" in seconds else "encoded" if seconds else "kept")
        return Medium(kind="video", encoded=encoded)


def _emit(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    """Hands an event to the loop; a loop that has ended needs none."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _visual(job: Job) -> int:
    """Visual tokens of a job's prompt."""
    usage = job.prompt.usage
    return usage["video_tokens"] + usage["image_tokens"]


def _require_wanted(gone: threading.Event) -> None:
    """Stops the preparation of a question whose client has left."""
    if gone.is_set():
        raise client_left()
