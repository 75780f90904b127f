"""Two trainings that should be the same."""

import pytest
from safetensors.torch import load_file

from mmllm.train.metrics import read_metrics


def assert_same_training(one, two, steps):
    """Their losses and norms, and the weights that they ended with, are equal to 1e-4."""
    for key in ("loss", "grad_norm"):
        expected, got = (
            [line[key] for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]
            for run in (one, two)
        )
        assert len(expected) == steps
        assert got == pytest.approx(expected, rel=1e-4), key
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (theirs[name] - weight).abs().max() < 1e-4, name
