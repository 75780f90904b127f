"""The file of metrics that training writes, a line of JSON each time something is logged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut short is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    read = []
    for line in lines:
        try:
            read.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: left out a line that is cut short", path)
    return read
