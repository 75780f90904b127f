"""What the samples of shards hold: a video and its questions each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import Annotations, Policy, RowReader, list_of
from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.shard_rows import item_of
from mmllm.datasets.shards import VERSION, shard_set
from mmllm.errors import InputError
from mmllm.times.stamps import shortened
from mmllm.video.tar_members import Member, members_of

KEYS = frozenset("version id duration_s media sha256 times_s rows".split())


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video in a shard, and its questions."""

    key: str
    media: Member
    text: Member
    """The file of its questions, `KEY.json`."""

    @property
    def video(self) -> Path:
        """The path by which the video is opened."""
        return self.media.tar / self.media.name


def samples_of(tar: Path) -> Iterator[tuple[str, Sample | str]]:
    """Key and sample of each pair of a video and its JSON in a shard, in its order; or why there is no such pair.

    A key is the name up to the first dot behind the last folder. As in WebDataset, hidden files (`._a.mp4`, which macOS
    adds) belong to no sample, and the files of a sample need not lie side by side.

    Raises:
        InputError: if the tar file is damaged.
    """
    by_key: dict[str, list[Member]] = {}
    for name, member in members_of(tar).items():
        folder, slash, file = name.rpartition("/")
        if not file.startswith("."):
            by_key.setdefault(folder + slash + file.partition(".")[0], []).append(member)
    for key, members in by_key.items():
        texts = [member for member in members if member.name.endswith(".json")]
        media = [member for member in members if member not in texts]
        if len(texts) == len(media) == 1:
            yield key, Sample(key=key, media=media[0], text=texts[0])
        elif not texts:
            yield key, f"{key}.json is missing"
        else:
            yield key, f"a sample has one JSON and one video, not {', '.join(member.name for member in members)}"


def read_shards(path: Path, policy: Policy = "repair") -> Annotations[Dialogue | Question]:
    """The questions of shards, each with the path of its video inside a shard.

    Args:
        path: a folder of shards, one of its splits (`shards/val`), or a tar file.
        policy: what to do with bad samples and rows.

    Raises:
        InputError: as `shard_set` does, if a tar file is damaged, or a row is bad and the policy is to raise.
    """
    reader: RowReader[Dialogue | Question] = RowReader(path, policy)
    keys: dict[str, Path] = {}
    for tar in shard_set(path).tars:
        for key, sample in samples_of(tar):
            where = f"{tar.name}, {key}"
            rows: list[Any] = []
            with reader.row(where):
                if not isinstance(sample, Sample):
                    raise InputError(sample)
                if key in keys:
                    reader.result.duplicates.append(key)
                    raise InputError(f"the key {key!r} occurs in {keys[key].name}, too")
                keys[key] = tar
                text = sample_text(sample)
                reader.look_at_keys(text, KEYS)
                rows = list_of(text, "rows")
                if not rows:
                    raise InputError("'rows' is empty")
                reader.result.rows -= 1  # a sample counts as its rows, unless it is bad
            for number, row in enumerate(rows, start=1):
                with reader.row(f"{where}, row {number}") as items:
                    items.append(item_of(reader, row, sample.video, str(text.get("id") or key)))
    return reader.result


def sample_text(sample: Sample) -> dict[str, Any]:
    """The JSON of a sample; a plain row with a question and an answer becomes a sample of one row.

    Raises:
        InputError: if it is no such JSON.
    """
    try:
        value = json.loads(sample.text.read())
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{sample.text.name} is not JSON: {shortened(str(problem))}") from None
    if isinstance(value, dict) and "rows" not in value and "question" in value:
        return {"rows": [value]}
    if not isinstance(value, dict) or "rows" not in value:
        raise InputError(f"{sample.text.name} has neither 'rows' nor 'question' and 'answer'")
    if value.get("version", VERSION) != VERSION:
        raise InputError(f"{sample.text.name} has version {value['version']!r}; this one reads {VERSION}")
    return value
