"""Long tests: skipped unless they are asked for, so that all others are done within twenty minutes."""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("MMLLM_LONG_TESTS"))
"""Whether `make test-long` runs, or someone who sets MMLLM_LONG_TESTS=1."""


def skip_long_ones(items: list[pytest.Item]) -> None:
    """Skips tests with the marker `long`."""
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="takes long: `make test-long` runs it"))
