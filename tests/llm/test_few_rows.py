"""Products of few rows that are shared out over threads are those of one thread, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from mmllm import VideoQA
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.llm.few_rows import FewRowsLinear, parts_of, share_rows
from mmllm.llm.int8 import Int8Linear, is_int8
from mmllm.runtime.fingerprint import fingerprint


@pytest.fixture
def products(monkeypatch):
    """The shapes of the shared products."""
    shapes, bmm, baddbmm = [], torch.bmm, torch.baddbmm
    monkeypatch.setattr(torch, "bmm", lambda *given: (shapes.append(given[0].shape), bmm(*given))[1])
    monkeypatch.setattr(torch, "baddbmm", lambda *given: (shapes.append(given[1].shape), baddbmm(*given))[1])
    return shapes


def shared(layer):
    layer = copy.deepcopy(layer)
    layer.__class__ = FewRowsLinear
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 64), (96, 768), (640, 96), (64, 50)])
def test_the_numbers_are_those_of_the_whole_product(threads, products, bias, inputs, outputs):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias)
    for rows in (1, 2, 4, 5, 40):
        hidden = torch.randn(1, rows, inputs)
        products.clear()
        near = 0 if rows == 1 else 1e-6
        torch.testing.assert_close(shared(layer)(hidden), layer(hidden), rtol=near, atol=near)
        parts = parts_of(outputs, threads)
        assert products == ([(parts, rows, inputs)] if parts > 1 and rows <= 4 else [])
    assert shared(layer)(torch.randn(0, inputs)).shape == (0, outputs)
    assert shared(layer)(torch.randn(inputs)).shape == (outputs,)


def test_parts_are_equal_and_of_whole_blocks():
    assert [parts_of(96, threads) for threads in (1, 2, 3, 4, 5, 6, 100)] == [1, 2, 3, 3, 3, 6, 6]
    assert parts_of(50, 8) == 1
    assert parts_of(49152, 5) == 4


def test_other_types_and_places_are_computed_as_before(products):
    layer = shared(nn.Linear(64, 64))
    layer.to(torch.bfloat16)(torch.randn(1, 64, dtype=torch.bfloat16))
    layer.to("meta", torch.float32)(torch.randn(1, 64, device="meta"))
    turned = shared(nn.Linear(64, 64))
    turned.weight.data = turned.weight.data.t()
    turned(torch.randn(1, 64))
    assert products == []


def test_gradients_are_those_of_the_whole_product(threads):
    layer = nn.Linear(64, 64)
    other, hidden = shared(layer), torch.randn(3, 64)
    for one in (layer, other):
        one(hidden).square().sum().backward()
    torch.testing.assert_close(other.weight.grad, layer.weight.grad)
    torch.testing.assert_close(other.bias.grad, layer.bias.grad)


def test_large_layers_of_the_llm_share(make_model):
    model = make_model("qwen2", {"hidden_size": 256, "intermediate_size": 512})
    before, names = fingerprint(model), set(model.state_dict())
    share_rows(model, model.language_model.base_model)
    kinds = {name: type(part) for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    large = {name for name, kind in kinds.items() if kind is FewRowsLinear}
    assert {name.rsplit(".", 1)[-1] for name in large} == {"gate_proj", "up_proj", "down_proj"}
    assert all(name.startswith("language_model.") for name in large)
    assert (fingerprint(model), set(model.state_dict())) == (before, names)


def test_a_model_that_is_loaded_shares_and_can_be_made_int8_afterwards(monkeypatch):
    monkeypatch.setattr("mmllm.llm.few_rows._LEAST_WEIGHTS", 1)
    qa = VideoQA.from_pretrained(DEFAULT_SMALL)
    assert any(isinstance(part, FewRowsLinear) for part in qa.decoder.modules())
    assert isinstance(qa.model.get_output_embeddings(), FewRowsLinear)
    assert not any(isinstance(part, FewRowsLinear) for part in qa.model.encoder.modules())
    qa.quantize()
    assert is_int8(qa.decoder)
    assert isinstance(qa.model.get_output_embeddings(), Int8Linear)
    assert not any(isinstance(part, FewRowsLinear) for part in qa.decoder.modules())
