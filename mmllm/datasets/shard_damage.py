"""Whether shards are what was written: all bytes are compared with the SHA-256 sums that are stored beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmllm.datasets.shard_samples import Sample, sample_text, samples_of
from mmllm.datasets.shards import INDEX, shard_set
from mmllm.errors import InputError


def damage_of(path: Path) -> list[str]:
    """What differs from the SHA-256 sums in the index and in the samples, in words. All bytes are read.

    Raises:
        InputError: as `shard_set` does.
    """
    damage = []
    shards = shard_set(path)
    for tar in shards.tars:
        if tar.name in shards.indexed and digest_of(tar) != shards.indexed[tar.name].get("sha256"):
            damage.append(f"damaged: {tar} has another SHA-256 than {INDEX} says")
        for key, sample in samples_of(tar):
            if isinstance(sample, Sample):
                damage += _sample_damage(f"{tar.name}, {key}", sample)
    return damage


def _sample_damage(where: str, sample: Sample) -> list[str]:
    try:
        stated = sample_text(sample).get("sha256")
    except InputError:
        return []  # a bad row, which is told anyway
    with sample.media.open() as file:
        if stated in (None, hashlib.file_digest(file, "sha256").hexdigest()):
            return []
    return [f"damaged: {where}: {sample.media.name} has another SHA-256 than its JSON says"]


def digest_of(tar: Path) -> str:
    """The SHA-256 of a file."""
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
