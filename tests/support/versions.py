"""Tests that need newer libraries than the oldest that are supported."""

import importlib

import av
import pytest
import torch
import transformers


def version(library):
    """The first two numbers of a library's version."""
    return tuple(map(int, library.__version__.split(".")[:2]))


needs_pyav_17_1 = pytest.mark.skipif(
    version(av) < (17, 1), reason="PyAV before 17.1 cannot write such files, or does not survive them"
)
try:
    accelerate = version(importlib.import_module("accelerate"))
except ImportError:  # the core alone
    accelerate = (99, 0)
puts_whole_models_on_disk = pytest.mark.skipif(
    accelerate < (1, 15), reason="accelerate before 1.15 refuses to put a whole model on the disk"
)
counts_every_attention = pytest.mark.skipif(
    version(torch) < (2, 11), reason="PyTorch 2.10 counts fewer operations of an attention"
)
OLD_TRANSFORMERS = version(transformers) < (5, 21)
"""Its processor of Video-LLaVA fails on images, and its pipelines give one of several sequences. Pixels of images have
another name in Video-LLaVA, and beams over videos crash in LLaVA-NeXT-Video and are wrong in Qwen3.5."""
