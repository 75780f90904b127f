"""MQT's resampler against recorded numbers, and what must hold of any number of its queries."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokenizers.mqt import MqtConfig, MqtResampler, sincos_positions
from mmllm.tokens import VisualTokens

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "mqt.safetensors")
STATE = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}


def resampler(tokens=256, **fields):
    made = MqtResampler(MqtConfig(tokens=tokens, heads=4, **fields), in_width=64, out_width=48, grid=(24, 24)).eval()
    made.load_state_dict(STATE, strict=True)
    return made


def whole(features, grid=(24, 24)):
    return VisualTokens(features=features.unsqueeze(1), grid=grid)


@pytest.mark.parametrize("tokens", [1, 4, 16, 256])
def test_recorded_tokens(tokens):
    with torch.no_grad():
        out = resampler(tokens)(whole(GOLDEN["in.features"]))
    assert_near(out.features[:, 0], GOLDEN[f"out.tokens_m{tokens}"])
    assert out.grid is None


def test_recorded_positions_and_a_grid_that_is_not_square():
    made = resampler(16)
    assert_near(made.key_positions((24, 24)), GOLDEN["out.key_pos"])
    with torch.no_grad():
        out = made(whole(GOLDEN["in.features_tgt2"], (12, 20)))
    assert_near(out.features[:, 0], GOLDEN["out.tokens_tgt2_m16"])
    assert torch.equal(sincos_positions(16, 64).half(), STATE["pos_embed"].half())


def test_recorded_attention_does_not_see_the_picture():
    made = resampler(4)
    queries = made.ln_q(made.query + made.pos_embed)[:4].unsqueeze(0)
    keys = made.ln_k(made.key_positions((24, 24))).unsqueeze(0)
    _, weights = made.attn(queries, keys, keys, average_attn_weights=False)
    assert_near(weights[0], GOLDEN["out.attn_m4"])


def test_any_first_tokens_are_the_first_of_all():
    features = whole(GOLDEN["in.features"])
    with torch.no_grad():
        everything = resampler()(features).features
        for tokens in (1, 2, 37, 255):
            torch.testing.assert_close(resampler(tokens)(features).features, everything[:, :, :tokens])


def test_what_was_dropped_does_not_count_and_padded_frames_stay_masked():
    made, features = resampler(8), whole(GOLDEN["in.features"])
    kept = torch.arange(0, 576, 3).expand(2, 1, -1)
    changed = features.replace(features=features.features.masked_fill(torch.arange(576).view(-1, 1) % 3 > 0, 7.0))
    with torch.no_grad():
        reduced = made(features.take(kept)).features
        masked = made(changed.replace(mask=(torch.arange(576) % 3 == 0).expand(2, 1, -1))).features
        assert_near(reduced, masked)
        out = made(features.replace(mask=features.mask & torch.tensor([True, False]).view(2, 1, 1)))
    assert out.mask.any(-1).flatten().tolist() == [True, False]
    assert out.features.isfinite().all()


def test_published_keys_ignore_the_picture_and_content_keys_do_not():
    features = whole(GOLDEN["in.features"])
    shifted = features.replace(features=features.features + 3.0)
    with torch.no_grad():
        assert_near(resampler(4)(shifted).features, resampler(4)(features).features)
        order = torch.randperm(576)
        shuffled = features.replace(features=features.features[:, :, order])
        assert not torch.allclose(resampler(4)(shuffled).features, resampler(4)(features).features, atol=1e-3)
        content = resampler(4, content_keys=True)(features).features
        assert not torch.allclose(content, resampler(4)(features).features, atol=1e-3)


def test_elastic_training_draws_every_even_number():
    made = resampler(16, elastic=True).train()
    drawn = {made.count() for _ in range(4000)}
    assert drawn == set(range(2, 257, 2))
    assert made.eval().count() == 16


def test_bad_input():
    for wrong in ("tokens=0", "tokens=257", "queries=200", "tokens=1.5"):
        with pytest.raises(ConfigError):
            registry.config_of("tokenizer", f"mqt:{wrong}")
    with pytest.raises(ConfigError, match="tokens = True"):
        registry.config_of("tokenizer", {"name": "mqt", "tokens": True})
    with pytest.raises(InputError, match="width 64 on a patch grid, not 32"):
        resampler()(whole(torch.randn(1, 576, 32)))
    with pytest.raises(ValueError, match="575 tokens a frame do not fill a 24x24 grid"):
        resampler()(whole(torch.randn(1, 575, 64)))
    with torch.no_grad():
        broken = resampler(4)(whole(torch.full((1, 576, 64), torch.nan))).features
    assert broken.isnan().all()  # never hidden
    assert resampler(4)(whole(torch.zeros(0, 576, 64))).features.shape == (0, 1, 4, 48)
