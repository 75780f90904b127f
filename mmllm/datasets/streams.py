"""Data sets of the Hugging Face library `datasets`, read as a stream: `hf:owner/name`, `hf:folder`, `hf:name#val`.

A sample has the bytes of a video in one column, and its questions: in a column `json` as the shards of `mmllm shard`
have it, or in columns called like the keys of a row (`question`, `answer`, `spans`, ...).

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
from mmllm.datasets.shards import is_shards, splits_of
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
        self._media = next((column for column in MEDIA if column in self._columns), None)
        if self._media is None:
            listed = ", ".join(self._columns)
            raise InputError(f"{self.name}: has no column with videos ({', '.join(MEDIA)}); it has {listed or 'none'}")
        if not {"json", "question"} & set(self._columns):
            raise InputError(f"{self.name}: has neither a column 'json' nor 'question' and 'answer'")

    @cached_property
    def _rows(self) -> Any:
        """The stream, before videos are left as bytes."""
        from datasets import load_dataset

        try:
            splits = load_dataset(*self._source, streaming=True)
        except (OSError, ValueError, RuntimeError, tarfile.TarError) as problem:
            raise InputError(f"{self.name}: cannot be opened: {shortened(str(problem), 300)}") from None
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
    def _source(self) -> tuple[Any, ...]:
        """Arguments of `load_dataset`: a folder of shards is read by its tar files alone, whatever else lies there."""
        if not is_shards(Path(self.place)):
            return (self.place,)
        files = {split: list(map(str, tars)) for split, tars in splits_of(Path(self.place)).items()}
        return "webdataset", None, None, files

    @cached_property
    def _columns(self) -> list[str]:
        """Names of the columns."""
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
        if isinstance((rows.features or {}).get(self._media), Video):
            rows = rows.cast_column(self._media, Video(decode=False))
        if seed is not None:
            rows = rows.shuffle(seed=seed + epoch, buffer_size=1)  # shards only
        if ranks > 1:
            rows = split_dataset_by_node(rows, rank, ranks)
        if state is not None:
            rows.load_state_dict(dict(state))
        try:
            for number, row in enumerate(rows):
                yield self._sample(row, f"sample {number + 1}", rows.state_dict())
        except InputError:
            raise
        except (OSError, RuntimeError, ValueError, tarfile.TarError) as problem:
            raise InputError(f"{self.name}: the stream broke off: {shortened(str(problem), 300)}") from None

    def _sample(self, row: Mapping[str, Any], where: str, state: Mapping[str, Any]) -> StreamSample:
        assert self._media is not None
        media, text = row[self._media], row.get("json")
        key = str(row.get("__key__") or row.get("id") or where)
        file = media.get("path") if isinstance(media, Mapping) else None
        data = media.get("bytes") if isinstance(media, Mapping) else media
        if data is None and file and Path(file).is_file():
            data = Path(file).read_bytes()
        if not isinstance(data, bytes):
            raise InputError(
                f"{self.name}, {key}: the column {self._media!r} must hold bytes, not {type(data).__name__}"
            )
        suffix = Path(file).suffix if file and Path(file).suffix else ".mp4"
        if not isinstance(text, Mapping):
            text = {name: row[name] for name in KEYS if name in row}
        return StreamSample(key=key, video=data, suffix=suffix, text=_given(text), state=state)


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
