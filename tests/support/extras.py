"""Tests that need an extra of the package."""

from __future__ import annotations

import pytest

from mmllm.errors import EXTRAS, is_installed


def needs(extra: str) -> pytest.MarkDecorator:
    """Skips a test, or a file of tests as its `pytestmark`, where the libraries of an extra are not installed."""
    missing = [library for library in EXTRAS[extra] if not is_installed(library)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: pip install 'mmllm[{extra}]'")
