"""Reading many files through worker processes, so that one bad file costs one file: not the run, and not a score.

A file that fails, crashes its worker or outlasts its deadline is set aside under its name. It yields nothing: no
black frame, no empty answer. What was set aside is listed at the end.
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
    """How items are read."""

    workers: int = 2
    """Processes that read."""
    deadline_s: float = 60.0
    """Seconds by the clock for one item; a worker that takes longer is killed."""
    start_s: float = 120.0
    """Seconds by the clock in which a worker must have started."""
    ahead: int = 2
    """Finished items that may wait, for each worker; bounds the memory."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, self, "workers", "at least 1")
        require(self.deadline_s > 0, self, "deadline_s", "a positive number of seconds")
        require(self.start_s > 0, self, "start_s", "a positive number of seconds")
        require(self.ahead >= 1, self, "ahead", "at least 1")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One item that was set aside."""

    number: int
    """Its place among the items."""
    name: str
    error: str
    """Kind of the error, such as `NoVideoStream`; `Crashed` and `TimedOut` if the worker did not live to tell."""
    reason: str

    @property
    def told(self) -> str:
        """Kind of the error and reason."""
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
        """
        Args:
            read: reads one item; a function that another process can import, or a picklable object.
            config: workers and deadlines.
            name: what to call an item in messages.
        """
        self._read, self._name, self.config = read, name, config or QuarantineConfig()
        self.failures: list[Failure] = []
        self.count = 0
        """Items taken so far."""

    def results(self, items: Iterable[Item]) -> Iterator[tuple[int, Result]]:
        """Place and result of every item that could be read, in the order of the items."""
        with contextlib.closing(self.outcomes(items)) as outcomes:
            for number, result in outcomes:
                if not isinstance(result, Failure):
                    yield number, result

    def outcomes(self, items: Iterable[Item]) -> Generator[tuple[int, Result | Failure], None, None]:
        """Place and result of every item, or why it was set aside, in the order of the items."""
        pool = _Pool(self._read, self.config)
        left = enumerate(items)
        order: deque[int] = deque()
        names: dict[int, str] = {}
        done: dict[int, tuple[bool, Any]] = {}
        exhausted, most = False, self.config.workers * (1 + self.config.ahead)
        try:
            while True:
                while not exhausted and pool.idle and len(order) < most:
                    following = next(left, None)
                    if following is None:
                        exhausted = True
                        break
                    number, item = following
                    self.count += 1
                    names[number] = self._name(item)
                    order.append(number)
                    pool.give(number, item)
                while order and order[0] in done:
                    number = order.popleft()
                    good, result = done.pop(number)
                    name = names.pop(number)
                    yield number, result if good else self._set_aside(number, name, *result)
                if exhausted and not order:
                    return
                if not pool.idle or exhausted or len(order) >= most:
                    done.update(pool.finished())
        finally:
            pool.kill()

    def report(self) -> str:
        """What was set aside, one line for each item under a line with the totals."""
        lines = [f"{self.count - len(self.failures)} of {self.count} items read, {len(self.failures)} set aside"]
        lines += [f"  {failure.name}: {failure.told}" for failure in self.failures]
        return "\n".join(lines)

    def raise_if_any(self) -> None:
        """Raises PartialFailure, with the report, if an item was set aside."""
        if self.failures:
            raise PartialFailure(self.report())

    def rows(self) -> list[dict[str, Any]]:
        """What was set aside, as JSON values."""
        return [dataclasses.asdict(failure) for failure in self.failures]

    def _set_aside(self, number: int, name: str, error: str, reason: str) -> Failure:
        reason = reason.removeprefix(f"{name}: ")
        self.failures.append(Failure(number=number, name=name, error=error, reason=reason))
        _logger.warning("set aside: %s: %s: %s", name, error, reason)
        return self.failures[-1]


class _Pool:
    """Worker processes with at most one item each; those that die or dawdle are replaced."""

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
        with contextlib.suppress(OSError):  # if it died idle, `finished` will find its pipe closed
            worker.pipe.send(item)

    def finished(self) -> dict[int, tuple[bool, Any]]:
        """Waits until at least one item is done: number -> (True, result) or (False, (error, reason))."""
        done: dict[int, tuple[bool, Any]] = {}
        while not done:
            busy = [worker for worker in self._workers if worker.number is not None]
            if not busy:
                return done
            left = max(0.0, min(worker.until for worker in busy) - time.monotonic())
            ready: Sequence[Any] = wait([worker.pipe for worker in busy], timeout=left)
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
        """What a worker says; None if it only says that it has begun."""
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
    """A process and the pipe to it."""

    def __init__(self, context: Any, read: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(read, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.number: int | None = None
        self.until = 0.0
        self.started = False

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(read: Callable[[Any], Any], pipe: Connection) -> None:
    """The worker process: reads items until the pipe is closed."""
    end_with_parent()
    with contextlib.suppress(EOFError, OSError):  # the other end is closed: nobody is left to read for
        while True:
            item = pipe.recv()
            pipe.send(("begun", None))
            try:
                answer = ("result", read(item))
            except Exception as problem:
                answer = ("failure", (type(problem).__name__, " ".join(str(problem).split())))
            pipe.send(answer)
