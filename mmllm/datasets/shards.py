"""Folders of shards: WebDataset tar files with a video `KEY.mp4` and its questions `KEY.json` for each sample.

    shards/train-000000.tar  train-000001.tar  val-000000.tar  index.json

`index.json` says which tar files belong to which split, how long they are and what their SHA-256 is. A folder of tar
files without it is read, too. Videos are opened inside the tar files. `mmllm shard` writes such folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.runtime.files import read_json
from mmllm.video.tar_members import SUFFIX

INDEX = "index.json"
VERSION = 1
_NAME = re.compile(r"(.+?)-(\d+)\.tar")


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """The shards of one split."""

    source: Path
    """As it was named: the folder, the folder with the name of a split behind it, or a tar file."""
    tars: tuple[Path, ...]
    indexed: Mapping[str, Mapping[str, Any]]
    """Name of a tar file -> its entry in the index; empty without one."""


def is_shards(path: Path) -> bool:
    """Whether a path names shards: a tar file, a folder of them, or such a folder with a split's name behind it.

    A folder that has train.json or val.json is no such folder, whatever tar files lie in it.
    """
    path = Path(path)
    return (path.suffix == SUFFIX and path.is_file()) or _folder(path) is not None


def _folder(path: Path) -> Path | None:
    """The folder of shards that a path names; None if it names something else."""
    named = path.parent if not path.exists() and "." not in path.name else path
    if not named.is_dir() or any((named / file).exists() for file in ("train.json", "val.json")):
        return None
    return named if (named / INDEX).is_file() or tars_in(named) else None


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder by name, without those that a killed writer has left half."""
    return sorted(tar for tar in folder.glob(f"*{SUFFIX}") if not tar.name.startswith("."))


def splits_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> its tar files in order: those of the index, or those in the folder, by the names before the number.

    Raises:
        InputError: if the index is damaged or of another version.
    """
    if (folder / INDEX).exists():
        return {
            split: tuple(folder / str(entry.get("file")) for entry in entries)
            for split, entries in _index(folder).items()
        }
    splits: dict[str, list[Path]] = {}
    for tar in tars_in(folder):
        named = _NAME.fullmatch(tar.name)
        splits.setdefault(named[1] if named else tar.stem, []).append(tar)
    return {split: tuple(tars) for split, tars in splits.items()}


def _index(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Split -> the entries of its shards.

    Raises:
        InputError: if the index is damaged or of another version.
    """
    remedy = "write the shards again with mmllm shard, or delete this file: the tar files are then read without it"
    index = read_json(folder / INDEX, remedy)
    if index.get("version") != VERSION or not isinstance(index.get("splits"), dict):
        version = f"version {index.get('version')!r} of an index; this one reads {VERSION}"
        raise InputError(f"{folder / INDEX}: {version}: {remedy}")
    return index["splits"]


def with_split(path: Path, split: str) -> Path:
    """The path with a split behind it, if it is a folder of shards that has this split among several."""
    if path.is_dir() and is_shards(path) and len(splits := splits_of(path)) > 1 and split in splits:
        return path / split
    return path


def shard_set(path: Path) -> ShardSet:
    """The shards that a path names.

    Raises:
        InputError: if there are none, the split is unknown or not named among several, or a shard is missing or has
            another length than the index says.
    """
    path = Path(path)
    folder = _folder(path)
    if folder is None:
        if not is_shards(path):
            raise InputError(f"{path}: no shard (.tar) is there")
        return ShardSet(source=path, tars=(path,), indexed={})
    splits = splits_of(folder)
    names = ", ".join(splits)
    if folder == path and len(splits) != 1:
        example = path / next(iter(splits), "train")
        raise InputError(f"{path}: has the splits {names or '(none)'}: name one of them, as in {example}")
    split = next(iter(splits)) if folder == path else path.name
    if split not in splits:
        raise InputError(f"{folder}: there is no split {split!r}; {closest(split, splits)}")
    indexed = {}
    if (folder / INDEX).exists():
        indexed = {str(entry["file"]): entry for entry in _index(folder)[split]}
        for tar in splits[split]:
            _require_length(tar, indexed[tar.name])
    return ShardSet(source=path, tars=splits[split], indexed=indexed)


def _require_length(tar: Path, entry: Mapping[str, Any]) -> None:
    if not tar.is_file():
        raise InputError(f"{tar}: this shard is missing, and {INDEX} lists it")
    if (size := tar.stat().st_size) != entry.get("bytes"):
        raise InputError(f"{tar}: has {size} bytes, and by {INDEX} it should have {entry.get('bytes')}: fetch it again")


def states_of(path: Path) -> dict[str, str]:
    """Path of each shard -> its SHA-256 by the index, or its bytes without one: other data have others.

    Raises:
        InputError: as `shard_set` does.
    """
    shards = shard_set(path)
    return {
        str(tar): str(shards.indexed.get(tar.name, {}).get("sha256") or f"{tar.stat().st_size} bytes")
        for tar in shards.tars
    }
