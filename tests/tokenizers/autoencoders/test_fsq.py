"""Finite scalar quantisation against recorded numbers of the original, and over the whole codebook."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.autoencoders.fsq import FiniteScalarQuantizer

RECORDED = load_file(Path(__file__).resolve().parents[2] / "data" / "flextok-fsq.safetensors")
LEVELS = {"fsq64k": (8, 8, 8, 5, 5, 5), "fsq_small": (4, 3), "fsq_mixed": (2, 7, 6, 5)}


@pytest.mark.parametrize("case", LEVELS)
def test_recorded_codes_ids_and_gradients(case):
    quantizer = FiniteScalarQuantizer(LEVELS[case])
    latents = RECORDED[f"in.{case}.z"].clone().requires_grad_()
    codes = quantizer.quantize(latents)
    torch.testing.assert_close(quantizer.bounded(latents), RECORDED[f"out.{case}.bounded"])
    assert torch.equal(codes, RECORDED[f"out.{case}.quant"])
    assert torch.equal(quantizer.ids(codes), RECORDED[f"out.{case}.ids"])
    codes.sum().backward()
    torch.testing.assert_close(latents.grad, RECORDED[f"out.{case}.dquant_dz"])
    assert torch.equal(quantizer.codes(RECORDED[f"in.{case}.ids"]), RECORDED[f"out.{case}.codes"])


def test_every_id_comes_back_and_every_code_is_another():
    quantizer = FiniteScalarQuantizer(LEVELS["fsq64k"])
    ids = torch.arange(quantizer.codebook_size)
    codes = quantizer.codes(ids)
    assert len(ids) == 64_000 == len(codes.unique(dim=0))
    assert torch.equal(quantizer.ids(codes), ids)
    weighted = (codes.double() * ids.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(weighted, RECORDED["out.fsq64k.codebook_index_weighted_sum"], rtol=1e-12, atol=1e-6)


def test_the_middle_and_the_ends():
    quantizer = FiniteScalarQuantizer(LEVELS["fsq64k"])
    ends = torch.tensor([0.0, 1e4, -1e4]).unsqueeze(-1).expand(3, 6)
    assert quantizer.ids(quantizer.quantize(ends)).tolist() == [32036, 63999, 0]


def test_half_precision_is_quantised_in_full():
    quantizer, latents = FiniteScalarQuantizer((8, 5)), torch.randn(50, 2).bfloat16()
    assert torch.equal(quantizer.quantize(latents), quantizer.quantize(latents.float()))


def test_bad_input():
    for levels in ((), (8, 1), (0,)):
        with pytest.raises(ConfigError, match="at least 2"):
            FiniteScalarQuantizer(levels)
    quantizer = FiniteScalarQuantizer((4, 3))
    for ids in (torch.tensor([12]), torch.tensor([-1])):
        with pytest.raises(InputError, match="0 to 11"):
            quantizer.codes(ids)
    with pytest.raises(InputError, match="whole numbers"):
        quantizer.codes(torch.tensor([1.0]))
    with pytest.raises(InputError, match="2 channels"):
        quantizer.quantize(torch.zeros(5, 3))
