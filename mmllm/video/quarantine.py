"""Reading many files in worker processes, so that a bad file does not stop the run.

A file that fails, crashes its worker or takes too long is set aside, with its name and the reason. Nothing takes its
place: no black frame, no empty answer. All files that were set aside are listed at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from mmllm.errors import PartialFailure
from mmllm.fields import require
from mmllm.video._child import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuarantineConfig:
    """Workers and deadlines for reading items."""

    workers: int = 2
    """Number of worker processes."""
    deadline_s: float = 60.0
    """Seconds by the clock for one item. A worker that takes longer is killed."""
    start_s: float = 120.0
    """Seconds by the clock for the start of a worker."""
    ahead: int = 2
    """Finished items for each worker that may wait for the caller. This bounds the memory."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, self, "workers", "at least 1")
        require(self.deadline_s > 0, self, "deadline_s", "a positive number of seconds")
        require(self.start_s > 0, self, "start_s", "a positive number of seconds")
        require(self.ahead >= 1, self, "ahead", "at least 1")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An item that was set aside."""

    number: int
    """Its position among the items, from 0."""
    name: str
    error: str
    """Type of the error, such as `NoVideoStream`; `Crashed` or `TimedOut` if the worker ended without an answer."""
    reason: str

    @property
    def told(self) -> str:
        """Type of the error and reason, as one text."""
        return f"{self.error}: {self.reason}"


class Quarantine(Generic[Item, Result]):
    """Reads items in worker processes.

    ```python
    reading = Quarantine(read_clip, QuarantineConfig(workers=2))
    for number, clip in reading.results(paths):
        ...
    print(reading.report())
    ```
    """

    def __init__(
        self,
        read: Callable[[Item], Result],
        config: QuarantineConfig | None = None,
        *,
        name: Callable[[Item], str] = str,
    ) -> None:
        """Prepares for reading; no process is started yet.

        Args:
            read: reads one item; a function that another process can import, or a picklable object.
            config: workers and deadlines.
            name: gives the name of an item for messages.
        """
        self._read, self._name, self.config = read, name, config or QuarantineConfig()
        self.failures: list[Failure] = []
        self.count = 0
        """Number of items that were given to workers so far."""

    def results(self, items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Position and result of each item that could be read, in the order of the items."""
        with contextlib.closing(self.outcomes(items)) as outcomes:
            for number, result in outcomes:
                if not isinstance(result, Failure):
                    yield number, result

    def outcomes(self, items: Iterable[Item]) -> Generator[tuple[int, Result | Failure], None, None]:
        """Position of each item with its result, or with the reason why it was set aside, in the order of the items."""
        pool = _Pool(self._read, self.config)
        remaining = enumerate(items)
        order: deque[int] = deque()  # numbers of the items that workers have and the caller has not
        names: dict[int, str] = {}
        done: dict[int, tuple[bool, Any]] = {}
        exhausted, max_pending = False, self.config.workers * (1 + self.config.ahead)
        try:
            while True:
                # 1. Give items to idle workers, but not too far ahead of the caller.
                while not exhausted and pool.idle and len(order) < max_pending:
                    numbered_item = next(remaining, None)
                    if numbered_item is None:
                        exhausted = True
                        break
                    number, item = numbered_item
                    self.count += 1
                    names[number] = self._name(item)
                    order.append(number)
                    pool.give(number, item)
                # 2. Hand over the results that come next in order.
                while order and order[0] in done:
                    number = order.popleft()
                    success, result = done.pop(number)
                    name = names.pop(number)
                    yield number, result if success else self._set_aside(number, name, *result)
                if exhausted and not order:
                    return
                # 3. Wait for a worker, unless more items can be given out.
                if not pool.idle or exhausted or len(order) >= max_pending:
                    done.update(pool.finished())
        finally:
            pool.kill()

    def report(self) -> str:
        """A line with the totals, then a line for each item that was set aside."""
        lines = [f"{self.count - len(self.failures)} of {self.count} items read, {len(self.failures)} set aside"]
        lines += [f"  {failure.name}: {failure.told}" for failure in self.failures]
        return "\n".join(lines)

    def raise_if_any(self) -> None:
        """Raises PartialFailure with the report if an item was set aside."""
        if self.failures:
            raise PartialFailure(self.report())

    def rows(self) -> list[dict[str, Any]]:
        """The items that were set aside, as JSON values."""
        return [dataclasses.asdict(failure) for failure in self.failures]

    def _set_aside(self, number: int, name: str, error: str, reason: str) -> Failure:
        reason = reason.removeprefix(f"{name}: ")
        self.failures.append(Failure(number=number, name=name, error=error, reason=reason))
        _logger.warning("set aside: %s: %s: %s", name, error, reason)
        return self.failures[-1]


class _Pool:
    """Worker processes with at most one item each. A worker that dies or takes too long is replaced."""

    def __init__(self, read: Callable[[Any], Any], config: QuarantineConfig) -> None:
        self._read, self._config = read, config
        self._context = multiprocessing.get_context("spawn")  # a fork may copy locks that other threads hold
        self._workers: list[_Worker] = []

    @property
    def idle(self) -> bool:
        """True while another item can be given."""
        return len(self._workers) < self._config.workers or any(worker.number is None for worker in self._workers)

    def give(self, number: int, item: Any) -> None:
        """Lets an idle worker read an item."""
        worker = next((worker for worker in self._workers if worker.number is None), None)
        if worker is None:
            worker = _Worker(self._context, self._read)
            self._workers.append(worker)
        allowed_s = self._config.deadline_s + (0 if worker.started else self._config.start_s)
        worker.number, worker.until = number, time.monotonic() + allowed_s
        with contextlib.suppress(OSError):  # if the idle worker has died, `finished` finds its pipe closed
            worker.pipe.send(item)

    def finished(self) -> dict[int, tuple[bool, Any]]:
        """Waits until an item is done, and returns: number -> (True, result) or (False, (error, reason))."""
        done: dict[int, tuple[bool, Any]] = {}
        while not done:
            busy = [worker for worker in self._workers if worker.number is not None]
            if not busy:
                return done
            remaining_s = max(0.0, min(worker.until for worker in busy) - time.monotonic())
            ready: Sequence[Any] = wait([worker.pipe for worker in busy], timeout=remaining_s)
            for worker in busy:
                assert worker.number is not None
                if worker.pipe in ready:
                    answer = self._answer(worker)
                    if answer is not None:
                        done[worker.number] = answer
                        worker.number = None
                elif time.monotonic() >= worker.until:
                    self._replace(worker)
                    limit = self._config.deadline_s if worker.started else self._config.start_s
                    done[worker.number] = (False, ("TimedOut", f"not done after {limit:g} s; its process was killed"))
        return done

    def _answer(self, worker: _Worker) -> tuple[bool, Any] | None:
        """A worker's answer: success and value; None if it only reports that it has started on the item."""
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return False, ("Crashed", f"its process ended with code {worker.process.exitcode}")
        if kind == "begun":
            worker.started = True
            worker.until = time.monotonic() + self._config.deadline_s
            return None
        return kind == "result", value

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)

    def kill(self) -> None:
        """Ends all workers at once."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()


class _Worker:
    """A worker process and the pipe to it."""

    def __init__(self, context: Any, read: Callable[[Any], Any]) -> None:
        self.pipe, worker_pipe = context.Pipe()
        self.process = context.Process(target=_work, args=(read, worker_pipe), daemon=True)
        self.process.start()
        worker_pipe.close()
        self.number: int | None = None
        self.until = 0.0
        self.started = False

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(read: Callable[[Any], Any], pipe: Connection) -> None:
    """The worker process: reads items until the pipe is closed."""
    end_with_parent()
    with contextlib.suppress(EOFError, OSError):  # raised when the parent has closed its end of the pipe
        while True:
            item = pipe.recv()
            pipe.send(("begun", None))
            try:
                answer = ("result", read(item))
            except Exception as problem:
                answer = ("failure", (type(problem).__name__, " ".join(str(problem).split())))
            pipe.send(answer)
