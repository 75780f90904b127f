"""`mmllm shard DATA --output DIR`: annotated videos as WebDataset shards."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm.commands.flags import given_file
from mmllm.datasets.shards import is_shards
from mmllm.errors import InputError

if TYPE_CHECKING:
    from mmllm.datasets.records import Dialogue, Question

SPLITS = ("train", "val", "test")
MOST_MB = 1 << 20


def shard(
    data: Annotated[Path, tyro.conf.Positional],
    output: Path,
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    shard_mb: int = 256,
    skip_bad: bool = False,
    json: bool = False,
) -> None:
    """Write videos and their questions as tar files that `train`, `finetune`, `eval` and `check` read.

    A stopped writing goes on with the first tar file that is missing. The videos' bytes are copied as they are.

    Args:
        data: an annotation file in any format that `mmllm check` reads, or a folder with some of train.json, val.json
            and test.json.
        output: the folder of the shards.
        videos: folder of the videos; by default the folder `videos` beside the annotations, for rows with paths the
            folder of their file.
        format: as for `mmllm check`; auto recognises it from the content.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.
        shard_mb: largest size of a shard in MiB; a larger video is a shard of its own.
        skip_bad: leave bad rows out instead of refusing the data.
        json: print one JSON object.
    """
    from mmllm.datasets.shard_writing import planned, write_shards

    if not 1 <= shard_mb <= MOST_MB:
        raise InputError(f"--shard-mb {shard_mb}: must be from 1 to {MOST_MB}")
    plan = {}
    for split, file in _files(data).items():
        items = _checked(file, videos, format, durations, skip_bad)
        plan[split] = planned(items, split, shard_mb << 20)
    index = write_shards(plan, output)
    record: dict[str, Any] = {"folder": str(output)}
    for split, shards in index["splits"].items():
        record[split] = {
            "shards": len(shards),
            "videos": sum(len(entry["samples"]) for entry in shards),
            "rows": sum(entry["rows"] for entry in shards),
            "bytes": sum(entry["bytes"] for entry in shards),
        }
    if json:
        print(json_text.dumps(record))
        return
    for split, counts in record.items():
        if split != "folder":
            size = counts.pop("bytes") / 2**20
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            print(f"{output / split}: {told}, {size:,.1f} MiB")


def _files(data: Path) -> dict[str, Path]:
    """Split -> its annotation file.

    Raises:
        InputError: if there is none, or these are shards.
    """
    data = given_file(data)
    if is_shards(data):
        raise InputError(f"{data}: these are shards already")
    if not data.is_dir():
        return {data.name.split(".")[0]: data}
    files = {split: data / f"{split}.json" for split in SPLITS if (data / f"{split}.json").is_file()}
    if not files:
        raise InputError(f"{data}: has none of {', '.join(f'{split}.json' for split in SPLITS)}; name the file itself")
    return files


def _checked(
    file: Path, videos: Path | None, format: str, durations: Path | None, skip_bad: bool
) -> list[Dialogue | Question]:
    """The questions and dialogues of a file after checking all rows and videos.

    Raises:
        InputError: if a row or a video is bad and `skip_bad` is False, or none remains.
    """
    from mmllm.datasets.bad_rows import report_problems
    from mmllm.datasets.check import inspect
    from mmllm.datasets.formats import BESIDE, format_of
    from mmllm.datasets.shard_rows import single_items

    form = format_of(file) if format == "auto" else format
    if videos is None and form not in BESIDE:
        videos = file.parent / "videos"
    inspection = inspect(file, videos, form, durations)
    rows = inspection.usable.derive(single_items)
    new = [f"bad row: {problem}" for problem in rows.bad[len(inspection.usable.bad) :]]
    report_problems([*inspection.summary["refused"], *new], file, skip_bad)
    if not rows.items:
        raise InputError(f"{file}: there is no row to write")
    return rows.items
