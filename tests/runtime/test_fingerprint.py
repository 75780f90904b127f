"""Fingerprints of weights: every weight and buffer counts, scalars too."""

import torch
from torch import nn

from mmllm.runtime.fingerprint import fingerprint


def test_a_scalar_buffer_counts():
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(()))
    before = fingerprint(module)
    assert fingerprint(module) == before
    module.scale.fill_(2.0)
    assert fingerprint(module) != before
