"""Training rows from a stream of videos, which are read once and kept nowhere.

Row n of a process is its n-th question, counted over the epochs. So a stopped training goes on with the very next
one. Where the stream stood is noted every now and then, so that going on does not read all that came before.

OUTPUT/stream/state-SEED-PROCESSES-RANK.jsonl     where the stream of a process stood, a line each
OUTPUT/stream/RANK.mp4                            the video of the current row, until training ends
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mmllm.datasets.annotations import RowReader
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.streams import StreamSample, VideoStream, items_of
from mmllm.errors import InputError
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, write_text
from mmllm.synthetic.questions import vocabulary
from mmllm.train.row_texts import words_of, writer_of
from mmllm.train.rows import DialogueRows, MediaLoader
from mmllm.train.schedule import RowTraining
from mmllm.train.stage import Rows, TrainingRun

log = logging.getLogger(__name__)

NOTED = 32
"""Questions between two notes of where a stream stands."""
WORD_SAMPLES = 1000
"""Samples whose words form the vocabulary of a small LLM trained from scratch."""


class _Read(NamedTuple):
    """A sample that has been read, with the number of its first question in this process."""

    start: int
    dialogues: list[Dialogue]
    sample: StreamSample

    @property
    def end(self) -> int:
        return self.start + len(self.dialogues)


class StreamDraws:
    """The dialogues of a stream by their number; see `mmllm.train.rows.Draws`. Numbers have to come in order.

    Args:
        stream: the data set.
        seed: of the order of shards.
        batch: rows of a batch; batches are taken by the processes in turns.
        folder: for notes and the current video.
    """

    def __init__(self, stream: VideoStream, seed: int, batch: int, folder: Path) -> None:
        self.stream, self.seed, self.batch = stream, seed, batch
        self.rank, self.ranks = processes.rank(), processes.count()
        self.notes = make_folder(folder) / f"state-{seed}-{self.ranks}-{self.rank}.jsonl"
        self._window: deque[_Read] = deque()
        self._shown: str | None = None
        self._samples: Iterator[StreamSample] | None = None
        """None until the first row is asked for."""

    def _begin(self, start: int, epoch: int, state: Any) -> None:
        """Goes to a place in the stream: behind `state` in an epoch, where question `start` of this process is next."""
        self._next, self._epoch = start, epoch
        self._empty = state is None
        """Whether nothing has come from the beginning of the epoch up to here."""
        own = {"seed": self.seed, "rank": self.rank, "ranks": self.ranks}
        self._samples = self.stream.samples(epoch=epoch, state=state, **own)

    def dialogue(self, number: int, attempt: int = 0) -> Dialogue:
        """The dialogue of a row; with `attempt`, one of those that follow it, which then comes twice.

        Raises:
            InputError: if the stream breaks off, or has nothing for this process.
        """
        turn, slot = divmod(number, self.batch)
        if turn % self.ranks != self.rank:
            raise InputError(f"row {number} belongs to another process than {self.rank}")
        place = turn // self.ranks * self.batch + slot
        while self._window and self._window[0].end <= place:
            self._window.popleft()
        if self._samples is None or place < (self._window[0].start if self._window else self._next):
            self._go_to(place)
        while self._next <= place + attempt:
            self._read()
            while self._window and self._window[0].end <= place:
                self._window.popleft()
        found = next(read for read in self._window if read.start <= place + attempt < read.end)
        self._show(found)
        return found.dialogues[place + attempt - found.start]

    def _go_to(self, place: int) -> None:
        """Goes to the last note before a question; to the beginning if there is none."""
        best: dict[str, Any] = {"next": 0, "epoch": 0, "state": None}
        for line in self.notes.read_text().splitlines() if self.notes.exists() else ():
            try:
                note = json.loads(line)
            except ValueError:
                continue  # a process that was killed has left half a line
            if best["next"] < note["next"] <= place:
                best = note
        self._window.clear()
        self._begin(best["next"], best["epoch"], best["state"])

    def _read(self) -> None:
        """Reads the next sample, or goes on to the next epoch."""
        assert self._samples is not None
        sample = next(self._samples, None)
        if sample is None:
            if self._empty:
                raise InputError(f"{self.stream.name}: has no question for process {self.rank} of {self.ranks}")
            self._begin(self._next, self._epoch + 1, None)
            return
        reader: RowReader[Dialogue | Question] = RowReader(Path(self.stream.name), "skip")
        items = items_of(sample, self._file(sample), reader)
        for problem in reader.result.bad:
            log.warning("left out: %s", problem)
        dialogues = [item if isinstance(item, Dialogue) else item.dialogue() for item in items]
        self._window.append(_Read(self._next, dialogues, sample))
        before, self._next = self._next, self._next + len(dialogues)
        self._empty = self._empty and not dialogues
        if before // NOTED != self._next // NOTED:
            with self.notes.open("a") as file:
                note = {"next": self._next, "epoch": self._epoch, "state": sample.state}
                file.write(json.dumps(note) + "\n")

    def _file(self, sample: StreamSample) -> Path:
        return self.notes.with_name(f"{self.rank}{sample.suffix}")

    def end(self) -> None:
        """Removes the current video, and what a process of this number that was killed has left of it."""
        for file in self.notes.parent.glob(f"{self.rank}.*"):
            file.unlink(missing_ok=True)
        self._shown = None

    def _show(self, read: _Read) -> None:
        """Writes the video of a sample to where its dialogues look for it."""
        if self._shown != (name := f"{read.start} {read.sample.key}"):
            self._file(read.sample).write_bytes(read.sample.video)
            self._shown = name


class StreamedDialogues:
    """Makes rows from a stream; each question is a row of its own. What cannot be used is set aside when it comes.

    Args:
        stream: the data set.
        seed: random seed of the order of shards.
    """

    def __init__(self, stream: VideoStream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        self._rows: DialogueRows | None = None
        self._draws: StreamDraws | None = None

    def words(self) -> list[str]:
        """Returns the lower-case words of the first samples that questions about shapes do not have."""
        reader: RowReader[Dialogue | Question] = RowReader(Path(self.stream.name), "skip")
        for sample in islice(self.stream.samples(), WORD_SAMPLES):
            items_of(sample, Path(sample.key), reader)
        items = reader.result.items
        known = set(vocabulary())
        asked = (item if isinstance(item, Dialogue) else item.dialogue() for item in items)
        return [word for word in words_of(asked) if word not in known]

    def rows(self, run: TrainingRun, training: RowTraining, *, keep_features: bool) -> Rows:
        """Returns as many rows as the training needs; see `RowSource`. Features are not kept: videos pass by."""
        writer = writer_of(run.processor, training)
        self._draws = StreamDraws(self.stream, self.seed, training.batch_size, run.folder / "stream")
        self._rows = DialogueRows(
            self._draws,
            writer,
            MediaLoader(writer),
            rows=training.rows,
            max_text_tokens=training.max_text_tokens,
        )
        return Rows(dataset=self._rows, workers=0)  # one process reads the stream in order

    def end(self) -> None:
        """Removes what this process has kept of the videos, when training ends or is broken off."""
        if self._draws is not None:
            self._draws.end()

    def report_unreadable(self, file: Path) -> None:
        """Lists what this process has set aside in a file; does nothing if that is nothing."""
        if self._rows is not None and self._rows.set_aside:
            lines = [f"{name}: {reason}" for name, reason in self._rows.set_aside.items()]
            write_text(file, "".join(f"{line}\n" for line in lines))
