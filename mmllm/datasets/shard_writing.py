"""Writing shards. What goes into which tar file depends on the data alone, so that a stopped writing goes on.

The same data give the same bytes: members have no time and no owner, and come in the order of the data.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.datasets.records import Dialogue, Question
from mmllm.datasets.shard_damage import digest_of
from mmllm.datasets.shard_rows import row_of, video_of
from mmllm.datasets.shard_samples import Sample, sample_text, samples_of
from mmllm.datasets.shards import INDEX, VERSION, tars_in
from mmllm.errors import InputError
from mmllm.runtime.files import make_folder, replacing, sweep_parts, write_json
from mmllm.runtime.progress import Progress
from mmllm.video.opening import open_video
from mmllm.video.tar_members import SUFFIX, status_of

LONGEST_KEY = 80


@dataclass(kw_only=True)
class PlannedSample:
    """A video that is to be written, with its questions."""

    key: str
    video: Path
    vid: str
    bytes: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def member(self) -> str:
        """Its name in the tar file."""
        return f"{self.key}{self.video.suffix.lower()}"


def planned(items: Sequence[Dialogue | Question], split: str, shard_bytes: int) -> dict[str, list[PlannedSample]]:
    """Name of each shard of a split -> its samples. Videos are in the order of their first question.

    Args:
        items: questions and dialogues about one video file each.
        split: the beginning of the names.
        shard_bytes: a shard ends before the video that would make its videos larger; it has one at least.
    """
    samples: dict[Path, PlannedSample] = {}
    keys: set[str] = set()
    for item in items:
        video = video_of(item)
        assert video is not None
        if video not in samples:
            key = _new_key(video.stem, keys)
            vid = item.vid if isinstance(item, Question) else video.stem
            samples[video] = PlannedSample(key=key, video=video, vid=vid, bytes=status_of(video)[0])
        samples[video].rows.append(row_of(item))
    shards: list[list[PlannedSample]] = []
    filled = 0
    for sample in samples.values():
        if not shards or filled + sample.bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(sample)
        filled += sample.bytes
    return {f"{split}-{number:06d}{SUFFIX}": shard for number, shard in enumerate(shards)}


def _new_key(name: str, keys: set[str]) -> str:
    """A key that no other sample has, of letters, digits, _ and -: readers split names at the first dot."""
    bare = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_KEY] or "_"
    key, number = bare, 1
    while key.lower() in keys:  # names that differ in case only are one file where such shards are unpacked
        number += 1
        key = f"{bare}_{number}"
    keys.add(key.lower())
    return key


def write_shards(plan: Mapping[str, Mapping[str, Sequence[PlannedSample]]], folder: Path) -> dict[str, Any]:
    """Writes the shards of each split that are not there yet, then the index; returns the index.

    Args:
        plan: split -> what `planned` gives for it.
        folder: for the shards. It may have some of them, from a writing that was stopped.

    Raises:
        InputError: if the folder has other shards, or it cannot be written to.
    """
    sweep_parts(make_folder(folder))
    expected = {name for shards in plan.values() for name in shards}
    strangers = [tar.name for tar in tars_in(folder) if tar.name not in expected]
    if strangers:
        raise InputError(f"{folder}: has shards of other data ({strangers[0]}): choose another --output")
    splits: dict[str, list[dict[str, Any]]] = {}
    with Progress("write shards", len(expected), "shards") as progress:
        for split, shards in plan.items():
            splits[split] = []
            for name, samples in shards.items():
                tar = folder / name
                if not tar.exists():
                    _write(tar, samples)
                splits[split].append(_entry(tar, samples))
                progress.advance()
    index = {"version": VERSION, "splits": splits}
    write_json(folder / INDEX, index)
    return index


def _write(tar: Path, samples: Sequence[PlannedSample]) -> None:
    with replacing(tar) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        for sample in samples:
            with sample.video.open("rb") as file:
                archive.addfile(_header(sample.member, sample.bytes), file)
            text = json.dumps(_text(sample), ensure_ascii=False).encode()
            archive.addfile(_header(f"{sample.key}.json", len(text)), io.BytesIO(text))


def _header(name: str, size: int) -> tarfile.TarInfo:
    """A member of no time and no owner."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header


def _text(sample: PlannedSample) -> dict[str, Any]:
    """The JSON of a sample."""
    with open_video(sample.video) as video:
        times_s, duration_s = [round(float(time_s), 6) for time_s in video.times_s], video.info.duration_s
    return {
        "version": VERSION,
        "id": sample.vid,
        "duration_s": round(duration_s, 6),
        "media": sample.video.name,
        "sha256": digest_of(sample.video),
        "times_s": times_s,
        "rows": sample.rows,
    }


def _entry(tar: Path, samples: Sequence[PlannedSample]) -> dict[str, Any]:
    """The entry of a shard in the index.

    Raises:
        InputError: if the shard holds something else than these samples.
    """
    written = [sample for _, sample in samples_of(tar) if isinstance(sample, Sample)]
    facts = [(sample.media.name, sample.media.size, sample_text(sample)["rows"]) for sample in written]
    if facts != [(sample.member, sample.bytes, sample.rows) for sample in samples]:
        raise InputError(f"{tar}: holds other videos or questions than these data: choose another --output")
    return {
        "file": tar.name,
        "bytes": tar.stat().st_size,
        "sha256": digest_of(tar),
        "rows": sum(len(sample.rows) for sample in samples),
        "samples": [
            {
                "key": sample.key,
                "media": [sample.media.name, sample.media.offset, sample.media.size],
                "json": [sample.text.name, sample.text.offset, sample.text.size],
            }
            for sample in written
        ],
    }
