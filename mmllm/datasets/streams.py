"""Data sets of the Hugging Face library `datasets`, read as a stream: `hf:owner/name`, `hf:folder`, `hf:name#val`.

A sample has the bytes of a video in one column, not always the same one, and its questions: in a column `json` as the
shards of `mmllm shard` have it, or in columns called like the keys of a row (`question`, `answer`, `spans`, ...).
Shards in a folder here are read by mmllm itself: their samples are those of `mmllm.datasets.shard_samples`.

Shards are read in an order of their own in each epoch; samples inside a shard stay in order. A buffer for shuffling
would lose what it holds when a training is stopped, so there is none.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import RowReader, list_of
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.shard_rows import KEYS, item_of
from mmllm.datasets.shard_samples import KEYS as SAMPLE_KEYS
from mmllm.datasets.shard_samples import Sample, sample_text, samples_of
from mmllm.datasets.shards import is_shards, shard_set, splits_of
from mmllm.errors import InputError, require_extra
from mmllm.fields import closest
from mmllm.times.stamps import shortened

PREFIX = "hf:"
MEDIA = ("mp4", "video", "webm", "mkv", "mov", "avi")
"""Columns that may hold the bytes of a video, in the order in which they are looked for."""
FIRST_CHOICES = {"train": ("train",), "eval": ("val", "validation", "test")}
"""What the data are for -> the splits that are taken if none is named."""


def is_stream(path: str | Path) -> bool:
    """Whether a name is that of a data set to be streamed."""
    return str(path).startswith(PREFIX)


@dataclass(frozen=True, kw_only=True)
class StreamSample:
    """A video and its questions, as they come out of a stream."""

    key: str
    video: bytes
    suffix: str
    text: Mapping[str, Any]
    state: Mapping[str, Any]
    """Where the stream stands behind this sample; `VideoStream.samples` goes on from it."""
    problem: str | None = None
    """Why it has no question or no video; None if it has both."""


class VideoStream:
    """A data set of videos.

    Args:
        name: with the prefix `hf:`; a split may stand behind `#`.
        purpose: `train` or `eval`: which split is taken if none is named.

    Raises:
        InputError: if it cannot be opened, the split is unknown or not named among several, or there is no video.
    """

    def __init__(self, name: str | Path, purpose: str) -> None:
        require_extra("train", "a stream of videos", "datasets")
        self.name, self.purpose = str(name), purpose
        self.place, _, self._split = self.name.removeprefix(PREFIX).partition("#")
        if not self.place:
            raise InputError(f"{self.name}: write the name of a data set, or a folder, behind {PREFIX}")
        self._media = [column for column in MEDIA if column in self._columns]
        if not self._media:
            listed = ", ".join(self._columns)
            raise InputError(f"{self.name}: has no column with videos ({', '.join(MEDIA)}); it has {listed or 'none'}")
        if not {"json", "question"} & set(self._columns):
            raise InputError(f"{self.name}: has neither a column 'json' nor 'question' and 'answer'")

    @cached_property
    def _rows(self) -> Any:
        """The stream, before videos are left as bytes."""
        splits = self._stored if is_shards(Path(self.place)) else self._loaded
        names = list(map(str, splits))
        if self._split:
            if self._split not in names:
                raise InputError(f"{self.name}: there is no split {self._split!r}; {closest(self._split, names)}")
            return splits[self._split]
        chosen = names if len(names) == 1 else [name for name in FIRST_CHOICES[self.purpose] if name in names]
        if not chosen:
            raise InputError(f"{self.name}: has the splits {', '.join(names)}: name one, as in {self.name}#{names[0]}")
        return splits[chosen[0]]

    @property
    def _loaded(self) -> Mapping[str, Any]:
        """Split -> its stream, by the library's own readers."""
        from datasets import load_dataset

        try:
            return load_dataset(self.place, streaming=True)
        except (OSError, ValueError, RuntimeError, tarfile.TarError) as problem:
            remedy = f"; {_MIXED}" if "same types" in str(problem) else ""
            raise InputError(f"{self.name}: cannot be opened: {shortened(str(problem), 300)}{remedy}") from None

    @property
    def _stored(self) -> Mapping[str, Any]:
        """Split -> the stream of its shards, whatever else lies in their folder."""
        from datasets import IterableDataset

        place = Path(self.place)
        splits = splits_of(place) if place.is_dir() else {place.stem: shard_set(place).tars}
        return {
            split: IterableDataset.from_generator(_rows_of, gen_kwargs={"tars": list(map(str, tars))})
            for split, tars in splits.items()
        }

    @cached_property
    def _columns(self) -> list[str]:
        """Names of the columns."""
        if is_shards(Path(self.place)):
            assert self._rows is not None  # the split exists
            return ["video", "json"]
        from datasets.exceptions import DatasetGenerationError

        try:
            return list(self._rows.column_names or next(iter(self._rows)))
        except InputError:
            raise
        except (OSError, ValueError, DatasetGenerationError, StopIteration) as problem:
            raise InputError(f"{self.name}: cannot be read: {shortened(repr(problem), 300)}") from None

    def samples(
        self, *, epoch: int = 0, seed: int | None = None, rank: int = 0, ranks: int = 1, state: Any = None
    ) -> Iterator[StreamSample]:
        """The samples of an epoch, or what is left of it.

        Args:
            epoch: number of the epoch.
            seed: of the order of shards; None keeps the data set's own.
            rank: which process reads; the processes read different shards if there are enough.
            ranks: number of processes.
            state: of the sample after which to go on, from the same epoch, seed and processes.

        Raises:
            InputError: if the stream breaks off, or a video is no bytes.
        """
        from datasets.distributed import split_dataset_by_node

        from datasets import Video

        rows = self._rows
        for column in self._media:
            if isinstance((rows.features or {}).get(column), Video):
                rows = rows.cast_column(column, Video(decode=False))
        if seed is not None:
            rows = rows.shuffle(seed=seed + epoch, buffer_size=1)  # shards only
        if ranks > 1:
            rows = split_dataset_by_node(rows, rank, ranks)
        if state is not None:
            rows.load_state_dict(dict(state))
        for number, row in enumerate(self._unbroken(rows)):
            yield self._sample(row, f"sample {number + 1}", rows.state_dict())

    def _unbroken(self, rows: Any) -> Iterator[Mapping[str, Any]]:
        """The rows; see `samples`."""
        try:
            yield from rows
        except (InputError, OSError, RuntimeError, ValueError, tarfile.TarError) as problem:
            raise InputError(f"{self.name}: the stream broke off: {shortened(str(problem), 300)}") from None

    def _sample(self, row: Mapping[str, Any], where: str, state: Mapping[str, Any]) -> StreamSample:
        text = row.get("json")
        key = str(row.get("__key__") or row.get("id") or where)
        column = next((name for name in MEDIA if row.get(name) is not None), None)
        if column is None or row.get("problem"):
            problem = row.get("problem") or f"has no video: nothing in {' or '.join(self._media)}"
            return StreamSample(key=key, video=b"", suffix="", text={}, state=state, problem=problem)
        media = row[column]
        file = media.get("path") if isinstance(media, Mapping) else None
        data = media.get("bytes") if isinstance(media, Mapping) else media
        if data is None and file and Path(file).is_file():
            data = Path(file).read_bytes()
        if not isinstance(data, bytes):
            raise InputError(f"{self.name}, {key}: the column {column!r} must hold bytes, not {type(data).__name__}")
        suffix = Path(file).suffix if file and Path(file).suffix else f".{'mp4' if column == 'video' else column}"
        if not isinstance(text, Mapping):
            text = {name: row[name] for name in KEYS if name in row}
        return StreamSample(key=key, video=data, suffix=suffix, text=_given(text), state=state)


_MIXED = (
    "the library wants videos of one suffix in the first samples: rename them, or download the folder, whose shards "
    "may then have any"
)


def _rows_of(tars: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of shards; a sample that cannot be used says why."""
    for tar in tars:
        for key, sample in samples_of(Path(tar)):
            row: dict[str, Any] = {"__key__": key, "video": None, "json": None, "problem": None}
            if isinstance(sample, Sample):
                try:
                    row["json"] = sample_text(sample)
                    row["video"] = {"path": sample.media.name, "bytes": sample.media.read()}
                except InputError as problem:
                    row["problem"] = str(problem)
            else:
                row["problem"] = sample
            yield row


def _given(value: Any) -> Any:
    """A value without what is None in its mappings: there the library fills up keys that a row does not have."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def items_of(sample: StreamSample, video: Path, reader: RowReader[Dialogue | Question]) -> list[Dialogue | Question]:
    """The questions of a sample; bad ones are listed by the reader, or raised by its policy.

    Args:
        sample: the sample.
        video: where its video lies, or will lie.
        reader: of the whole stream.
    """
    before = len(reader.result.items)
    if sample.problem is not None:
        with reader.row(sample.key):
            raise InputError(sample.problem)
        return []
    rows: list[Any] = [sample.text]
    if "rows" in sample.text:
        with reader.row(sample.key):
            reader.look_at_keys(sample.text, SAMPLE_KEYS)
            rows = list_of(sample.text, "rows")
            reader.result.rows -= 1  # a sample counts as its rows
    for number, row in enumerate(rows, start=1):
        with reader.row(f"{sample.key}, row {number}") as items:
            items.append(item_of(reader, row, video, str(sample.text.get("id") or sample.key)))
    return reader.result.items[before:]
