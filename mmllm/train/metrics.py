"""Reads the metrics file of a training: one line of JSON for each log entry."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a metrics file. An incomplete line, as after a crash, is ignored with a warning."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: ignored an incomplete line", path)
    return entries
