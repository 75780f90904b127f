"""The record of a run's settings and data. A stopped run continues only if both are the same as before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmllm.errors import ConfigError, MmllmError
from mmllm.runtime import processes
from mmllm.runtime.files import read_json, write_json
from mmllm.train.schedule import TrainingSchedule

MAX_LISTED = 8
"""At most so many differences are listed in a message; the others are counted."""

REMEDY = "choose another --output, or --force if it is the same run"


def claim(
    path: Path,
    current: Mapping[str, Any],
    *,
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    force: bool = False,
    remedy: str | None = None,
) -> None:
    """Writes the record of a run, after comparing it with the record of an earlier run in the same folder.

    Args:
        path: the JSON file.
        current: everything that the run depends on, as nested mappings of JSON values.
        read: converts the record of an older version to the current form.
        force: continue although something has changed.
        remedy: what a user can do, for the message; another folder or `--force` if None.

    Raises:
        ConfigError: if something has changed; the message has the values before and now.
    """
    if path.exists() and not force:
        changed = differences(read(read_json(path, remedy or REMEDY)), current)
        if changed:
            more = f"; and {len(changed) - MAX_LISTED} more" if len(changed) > MAX_LISTED else ""
            raise ConfigError(
                f"{path.parent} holds a run of another recipe or other data "
                f"({'; '.join(changed[:MAX_LISTED])}{more}): {remedy or 'choose another --output, or --force'}"
            )
    processes.wait()  # until all processes have compared
    if processes.is_main():
        write_json(path, current)


@contextmanager
def withdrawn_if_refused(path: Path) -> Iterator[None]:
    """Deletes a new record if the code inside raises an MmllmError.

    Nothing was trained then, so the corrected command may use the same folder.
    """
    new = not path.exists()
    try:
        yield
    except MmllmError:
        if new and processes.is_main():
            path.unlink(missing_ok=True)
        raise


def with_renamed_keys(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record of an older version with the current names of renamed training fields, at any depth."""
    new_names = TrainingSchedule.renamed_fields
    return {
        new_names.get(key, key): with_renamed_keys(value) if isinstance(value, Mapping) else value
        for key, value in saved.items()
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two nested mappings, each as `key: before -> now`."""
    old, new = _flat(with_renamed_keys(before)), _flat(json.loads(json.dumps(now)))
    missing = "(nothing)"
    return [
        f"{key}: {_written(old.get(key, missing))} -> {_written(new.get(key, missing))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, missing) != new.get(key, missing)
    ]


def digest(text: str | bytes) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 hash."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:12]


def file_digests(files: Iterable[Path]) -> dict[str, str]:
    """Returns path -> digest of each file that exists."""
    return {str(path): digest(path.read_bytes()) for path in files if path.is_file()}


def _written(value: Any) -> str:
    """Returns a value as the message shows it."""
    return value if value == "(nothing)" else repr(value)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as one level, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
