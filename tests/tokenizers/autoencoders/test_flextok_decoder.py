"""FlexTok's decoder and its sampling against numbers recorded by running the original with random weights."""

from pathlib import Path

import pytest
import torch
from original_flextok import renamed
from safetensors.torch import load_file

from mmllm.errors import InputError
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig
from mmllm.tokenizers.autoencoders.flextok_decoder import FlexTokDecoder
from mmllm.tokenizers.autoencoders.rectified_flow import Guidance, sample

RECORDED = load_file(Path(__file__).resolve().parents[2] / "data" / "flextok-decoder.safetensors")
NOISED, TIME, CODES, KEPT = (RECORDED[f"in.{name}"] for name in ("noised", "time", "codes", "kept"))


@pytest.fixture(scope="module")
def decoder():
    config = FlexTokDecoderConfig(channels=4, grid=(6, 6), registers=8, layers=2, width=32, head_width=16)
    made = FlexTokDecoder(config).eval().requires_grad_(False)
    made.load_state_dict(renamed(RECORDED), strict=True)
    return made


def test_recorded_velocities(decoder):
    everywhere = torch.ones(3, dtype=torch.bool)
    for name, given in {
        "velocity": {},
        "velocity_kept": {"kept": KEPT},
        "velocity_unconditional": {"unconditional": everywhere},
    }.items():
        velocity = decoder(NOISED, TIME, CODES, **given)
        torch.testing.assert_close(velocity, RECORDED[f"out.{name}"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("euler", None),
        ("guided", Guidance(scale=3.0)),
        ("projected", Guidance(scale=3.0, projected=True)),
        ("ramp", Guidance(scale=lambda time: 1 + 2 * time)),
    ],
)
def test_recorded_samples(decoder, name, guidance):
    def velocity(noised, time, conditional):
        nothing = None if conditional else torch.ones(3, dtype=torch.bool)
        return decoder(noised, time, CODES, kept=KEPT, unconditional=nothing)

    picture = sample(velocity, NOISED, steps=4, guidance=guidance)
    torch.testing.assert_close(picture, RECORDED[f"out.sample_{name}"], rtol=1e-5, atol=1e-4)


def test_codes_that_are_not_kept_change_nothing(decoder):
    changed = CODES.clone()
    for row, kept in enumerate(KEPT.tolist()):
        changed[row, kept:] = torch.randn_like(changed[row, kept:])
    assert torch.equal(decoder(NOISED, TIME, changed, kept=KEPT), decoder(NOISED, TIME, CODES, kept=KEPT))
    nowhere = torch.ones(3, dtype=torch.bool)
    without = decoder(NOISED, TIME, CODES, unconditional=nowhere)
    assert torch.equal(decoder(NOISED, TIME, torch.randn_like(CODES), unconditional=nowhere), without)


def test_a_batch_is_its_singles(decoder):
    whole = decoder(NOISED, TIME, CODES, kept=KEPT)
    for row in range(3):
        one = slice(row, row + 1)
        alone = decoder(NOISED[one], TIME[one], CODES[one], kept=KEPT[one])
        torch.testing.assert_close(alone, whole[one], rtol=1e-5, atol=1e-5)


def test_a_new_decoder_says_nothing_until_it_is_trained():
    config = FlexTokDecoderConfig(channels=4, grid=(6, 6), registers=8, layers=2, width=32, head_width=16)
    assert not FlexTokDecoder(config)(NOISED, TIME, CODES).any()


def test_published_size():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in FlexTokDecoder(FlexTokDecoderConfig()).parameters()) == 172_448_320


def test_bad_input(decoder):
    with pytest.raises(InputError, match=r"\(B 8 6\)"):
        decoder(NOISED, TIME, CODES[:, :7])
    for kept in (0, 9):
        with pytest.raises(InputError, match="1 to 8"):
            decoder(NOISED, TIME, CODES, kept=torch.tensor([1, 2, kept]))
