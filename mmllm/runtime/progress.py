"""The progress of long work: a bar on a terminal; elsewhere a plain line after each tenth of the work."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from tqdm import tqdm

from mmllm.runtime import processes


class Progress:
    """Counts finished pieces of work, as a context manager. Of several processes only the main one shows it.

    Args:
        what: the work, in a word or two.
        total: the number of pieces.
        unit: the name of a piece, in the plural.
        done: the number of pieces that were finished before.
        shown: False to show nothing.
    """

    def __init__(self, what: str, total: int, unit: str, *, done: int = 0, shown: bool = True) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.started_s = time.monotonic()
        self.shown = shown and total > 0 and processes.is_main()
        on_terminal = self.shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", disable=not on_terminal)
        self.lines = self.shown and not on_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.bar.close()

    def advance(self, pieces: int = 1, note: str = "") -> None:
        """Counts `pieces` more. `note`, such as the latest loss, is shown beside the count."""
        before, self.done = self.done, self.done + pieces
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(pieces)
        if self.lines and before * 10 // self.total < self.done * 10 // self.total:
            seconds = time.monotonic() - self.started_s
            with suppress(OSError):
                more = f", {note}" if note else ""
                line = f"{self.what}: {self.done}/{self.total} {self.unit}, {seconds:.0f} s{more}"
                print(line, file=sys.stderr, flush=True)
