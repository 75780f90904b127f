"""What happens with bad rows before any work begins: they are refused, or left out with a warning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mmllm.errors import InputError

log = logging.getLogger(__name__)

MAX_LISTED = 5
"""At most so many problems are listed in a message; the others are counted."""


def listed(problems: Sequence[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return "; ".join(problems[:MAX_LISTED]) + more


def report_problems(problems: Sequence[str], annotations: Path, skip_bad: bool) -> None:
    """Raises an InputError with the first problems, or warns of them if bad dialogues are skipped."""
    if not problems:
        return
    told = listed(problems)
    if not skip_bad:
        raise InputError(f"{annotations}: {told}. Correct them (mmllm check lists all), or skip them with --skip-bad")
    log.warning("%s: these are left out: %s", annotations, told)
