"""Tests that need a newer PyAV than the oldest that is supported."""

import av
import pytest

needs_pyav_17_1 = pytest.mark.skipif(
    tuple(map(int, av.__version__.split(".")[:2])) < (17, 1),
    reason="PyAV before 17.1 cannot write such files, or does not survive them",
)
