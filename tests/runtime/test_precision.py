"""The number type on a CPU: never a slow one unasked."""

import logging

import pytest
import torch

from mmllm import VideoQA
from mmllm.errors import ConfigError
from mmllm.runtime import precision
from mmllm.runtime.precision import on_cpu, slowdown


@pytest.fixture
def slow(monkeypatch):
    """Makes half types look as slow as given."""
    return lambda times: monkeypatch.setattr(precision, "slowdown", lambda dtype: times)


@pytest.mark.parametrize("asked", [None, "float32", torch.float32])
def test_float32_is_the_default_whatever_is_stored(asked):
    assert on_cpu(asked, "bfloat16") is torch.float32


@pytest.mark.parametrize("stored", ["bfloat16", torch.bfloat16, "float16"])
def test_auto_takes_the_type_of_the_files_where_it_is_fast(slow, stored):
    slow(0.5)
    assert on_cpu("auto", stored) is getattr(torch, str(stored).removeprefix("torch."))


def test_auto_never_takes_a_slow_type(slow, caplog):
    slow(7.0)
    with caplog.at_level(logging.WARNING):
        assert on_cpu("auto", "bfloat16") is torch.float32
    assert "bfloat16 is 7.0 times slower than float32 on this processor: computing in float32" in caplog.text


def test_a_slow_type_that_is_asked_for_by_name_is_taken_with_a_warning(slow, caplog):
    slow(7.0)
    with caplog.at_level(logging.WARNING):
        assert on_cpu("bfloat16", None) is torch.bfloat16
    assert "7.0 times slower" in caplog.text
    assert on_cpu("auto", None) is torch.float32


@pytest.mark.parametrize("name", ["float99", "int8", "float8_e4m3fn", "Tensor"])
def test_other_types_are_refused(name):
    with pytest.raises(ConfigError, match=f"dtype '{name}': a model computes in float32, bfloat16, float16, float64"):
        on_cpu(name, None)


def test_the_measurement_is_a_ratio_of_times():
    slowdown.cache_clear()
    assert slowdown(torch.float32) == pytest.approx(1.0, rel=0.9)  # two measurements of the same product
    assert slowdown(torch.float64) > 0


def test_a_model_is_loaded_in_the_type(slow):
    slow(1.0)
    assert VideoQA.from_pretrained("default", dtype="bfloat16").model.dtype is torch.bfloat16
    assert VideoQA.from_pretrained("default", dtype="auto").model.dtype is torch.float32  # as it is stored
    assert VideoQA.from_pretrained("default").model.dtype is torch.float32
