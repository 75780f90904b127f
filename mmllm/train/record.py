"""What a run was started with: a stopped run only goes on with the same, or the differences are shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmllm.errors import ConfigError, MmllmError
from mmllm.runtime import processes
from mmllm.train.schedule import TrainingSchedule

SHOWN = 8
"""Differences that a message lists before it only counts."""


def claim(
    path: Path,
    now: Mapping[str, Any],
    *,
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    force: bool = False,
) -> None:
    """Writes down what a run is started with, or compares it with what it was started with before.

    Args:
        path: the JSON file.
        now: everything that the run depends on, as nested mappings of JSON values.
        read: brings what an older version has written into today's form.
        force: go on although something has changed.

    Raises:
        ConfigError: naming what has changed, before and after.
    """
    if path.exists() and not force:
        changed = differences(read(json.loads(path.read_text())), now)
        if changed:
            more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise ConfigError(
                f"{path.parent} holds a run of another recipe or other data "
                f"({'; '.join(changed[:SHOWN])}{more}): choose another --output, or --force"
            )
    processes.wait()  # everybody has compared
    if processes.is_main():
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(now, indent=2) + "\n")
        part.replace(path)


@contextmanager
def withdrawn_if_refused(path: Path) -> Iterator[None]:
    """Takes a new record back if what follows is refused: nothing was trained, so the mended command may follow."""
    new = not path.exists()
    try:
        yield
    except MmllmError:
        if new and processes.is_main():
            path.unlink(missing_ok=True)
        raise


def with_renamed_keys(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What an older version has written, with today's names of a training's fields at any depth."""
    new = TrainingSchedule.renamed_fields
    return {
        new.get(key, key): with_renamed_keys(value) if isinstance(value, Mapping) else value
        for key, value in saved.items()
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two nested mappings differ in, as `key: before -> now`."""
    old, new = _flat(with_renamed_keys(before)), _flat(json.loads(json.dumps(now)))
    missing = "(nothing)"
    return [
        f"{key}: {_written(old.get(key, missing))} -> {_written(new.get(key, missing))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, missing) != new.get(key, missing)
    ]


def digest(text: str | bytes) -> str:
    """12 hexadecimal digits that change with any character."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:12]


def file_digests(files: Iterable[Path]) -> dict[str, str]:
    """Name and digest of each file that is there."""
    return {str(path): digest(path.read_bytes()) for path in files if path.is_file()}


def _written(value: Any) -> str:
    return value if value == "(nothing)" else repr(value)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
