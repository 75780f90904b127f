"""Columns of a batch of rows, as Ray Data gives them: which there have to be, and whether one names a video."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmllm.errors import InputError


def require_columns(batch: Mapping[str, Any], *names: str) -> None:
    """Refuses a batch without these columns.

    Raises:
        InputError: naming those that are missing, and those that are there.
    """
    if missing := [name for name in names if name not in batch]:
        raise InputError(f"the batch has no column {' and no '.join(missing)}; it has {', '.join(batch) or 'none'}")


def no_video(value: Any) -> str:
    """Why a value in the column `video` names no video; empty if it is a path."""
    if isinstance(value, str | os.PathLike) and os.fspath(value).strip():
        return ""
    return f"video is {value!r}: must be the path of a video"
