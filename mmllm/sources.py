"""Where a model can come from: a folder, or an id on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mmllm.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def checked_source(name: str | Path) -> str:
    """`name`, if it can be a model at all: a folder with a `config.json`, or `owner/name` for the hub.

    Raises:
        CheckpointError: if it is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise CheckpointError(f"{name}: this folder holds no model (no config.json)")
        return str(name)
    if folder.exists():
        raise CheckpointError(f"{name}: a model is a folder, not a file")
    if not _HUB_ID.fullmatch(str(name)):
        raise CheckpointError(f"{name}: there is no such folder, and a hub id reads owner/name")
    return str(name)


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file of a model folder holds.

    Raises:
        CheckpointError: if it is missing, damaged or no JSON object.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{file}: cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: is no JSON object")
    return content
