"""FlexTok's register encoder against recorded numbers of the original; its tokens are a prefix of each other."""

from pathlib import Path

import pytest
import torch
from original_flextok import renamed
from safetensors.torch import load_file

from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokEncoderConfig
from mmllm.tokenizers.autoencoders.flextok_encoder import FlexTokEncoder, registers_last
from mmllm.tokenizers.autoencoders.fsq import FiniteScalarQuantizer

RECORDED = load_file(Path(__file__).resolve().parents[2] / "data" / "flextok-encoder.safetensors")


@pytest.fixture(scope="module")
def encoder():
    config = FlexTokEncoderConfig(channels=4, grid=(6, 6), registers=16, layers=2, width=64, head_width=32)
    made = FlexTokEncoder(config).eval().requires_grad_(False)
    drawn = made.patches.positions.clone()
    made.load_state_dict(renamed(RECORDED), strict=True)
    torch.testing.assert_close(drawn, made.patches.positions, rtol=0, atol=1e-6)  # computed as the original's
    return made


def test_recorded_registers_codes_and_ids(encoder):
    latents = RECORDED["in.latents"]
    torch.testing.assert_close(encoder.features(latents), RECORDED["out.registers"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(latents), RECORDED["out.z"], rtol=1e-5, atol=1e-5)
    quantizer = FiniteScalarQuantizer((8, 8, 8, 5, 5, 5))
    codes = quantizer.quantize(encoder(latents))
    torch.testing.assert_close(codes, RECORDED["out.quant"])
    assert torch.equal(quantizer.ids(codes), RECORDED["out.ids"])


def test_later_registers_change_nothing(encoder):
    latents, quantizer = RECORDED["in.latents"], FiniteScalarQuantizer((8, 8, 8, 5, 5, 5))
    whole = encoder.features(latents)
    kept = encoder.registers.clone()
    encoder.registers[5:] = torch.randn(11, 64)
    assert torch.equal(encoder.features(latents)[:, :5], whole[:, :5])
    encoder.registers.copy_(kept)
    for tokens in (1, 5, 15):
        torch.testing.assert_close(encoder.features(latents, tokens), whole[:, :tokens], rtol=1e-5, atol=1e-5)
        short = quantizer.ids(quantizer.quantize(encoder(latents, tokens)))
        assert torch.equal(short, RECORDED["out.ids"][:, :tokens])


def test_a_batch_is_its_singles(encoder):
    latents = RECORDED["in.latents"]
    singles = torch.cat([encoder.features(single) for single in latents.split(1)])
    torch.testing.assert_close(singles, encoder.features(latents), rtol=1e-5, atol=1e-5)


def test_who_sees_whom():
    mask = registers_last(2, 3, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_published_size():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in FlexTokEncoder(FlexTokEncoderConfig()).parameters()) == 85_382_406


def test_bad_input(encoder):
    for latents, message in (
        (torch.zeros(1, 3, 8, 8), r"\(B 4 Y X\)"),
        (torch.zeros(1, 4, 9, 8), "multiples of 2"),
        (torch.zeros(1, 4, 16, 8), "at most 12 x 12"),
        (torch.full((1, 4, 8, 8), torch.nan), "finite"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(latents)
    for tokens in (0, 17):
        with pytest.raises(InputError, match="1 to 16"):
            encoder(torch.zeros(1, 4, 8, 8), tokens)
    with pytest.raises(ConfigError, match="divisor"):
        FlexTokEncoderConfig(width=96, head_width=64)
