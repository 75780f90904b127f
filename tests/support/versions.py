"""Tests that need newer libraries than the oldest that are supported."""

import av
import pytest
import transformers


def version(library):
    """The first two numbers of a library's version."""
    return tuple(map(int, library.__version__.split(".")[:2]))


needs_pyav_17_1 = pytest.mark.skipif(
    version(av) < (17, 1), reason="PyAV before 17.1 cannot write such files, or does not survive them"
)
OLD_TRANSFORMERS = version(transformers) < (5, 21)
"""Its processor of Video-LLaVA fails on images, and its pipelines give one of several sequences."""
