"""FastViTHD against the recorded network, in its released and its training form, frozen and not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file
from torch.nn import functional as F

from mmllm.encoders.fastvithd import FastVitHdConfig, FastVitHdEncoder, build_tower, load_fastvithd_tower
from mmllm.encoders.fastvithd_names import to_release, to_timm, tower_of
from mmllm.errors import CheckpointError, ConfigError, InputError

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "fastvithd.safetensors")
STATE = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}
PREFIX = "model.vision_tower.vision_tower.model."
TINY = FastVitHdConfig(image_size=128, layers=(1, 2, 1, 1, 1), dims=(4, 8, 16, 32, 64), chunk=2)


@pytest.fixture(scope="module")
def encoder():
    encoder = FastVitHdEncoder(TINY).eval()
    load_fastvithd_tower(encoder, STATE)
    return encoder


@pytest.fixture
def pixels():
    return torch.rand(1, 3, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def test_recorded_stages(encoder):
    tower = encoder.tower
    with torch.no_grad():
        x = tower.stem(GOLDEN["in.image"])
        assert_near(x, GOLDEN["out.stem"])
        for number, stage in enumerate(tower.stages, start=1):
            x = stage(x)
            assert_near(x, GOLDEN[f"out.stage{number}"])
        x = tower.final_conv(x)
    assert_near(x, GOLDEN["out.image_embeddings"])
    logits = x.mean((2, 3)) @ STATE[f"{PREFIX}head.proj"]
    assert_near(logits, GOLDEN["out.logits"])


@pytest.mark.parametrize(("image", "out"), [("in.image", "out."), ("in.image_odd", "out.odd.")])
def test_recorded_tokens(encoder, image, out):
    with torch.no_grad():
        tokens = encoder._run(GOLDEN[image], {}).features
        hidden = F.linear(tokens, STATE["model.mm_projector.0.weight"], STATE["model.mm_projector.0.bias"])
        projected = F.linear(F.gelu(hidden), STATE["model.mm_projector.2.weight"], STATE["model.mm_projector.2.bias"])
    assert_near(tokens, GOLDEN[f"{out}tokens"])
    assert_near(projected, GOLDEN[f"{out}projected"])


def test_tokens_of_frames(encoder, pixels):
    tokens = encoder(pixels, scores=["mean_attention", "mean_attention@0"])
    assert (tokens.grid, tokens.shape) == ((2, 2), (1, 3, 4, 128))
    with torch.no_grad():
        expected = encoder.tower.forward_features(pixels[0]).flatten(2).mT
    assert_near(tokens.features[0], expected)
    torch.testing.assert_close(tokens.scores["mean_attention"].sum(-1), torch.ones(1, 3))
    assert torch.equal(tokens.scores["mean_attention"], tokens.scores["mean_attention@0"])  # the stage has one block


def test_mean_attention_is_that_of_the_block(encoder, pixels):
    stage = encoder.tower.stages[-1]
    mixer, seen = stage.blocks[-1].token_mixer, []
    fused = mixer.fused_attn
    mixer.fused_attn = False
    handle = mixer.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        score = encoder(pixels[:, :1], scores=["mean_attention"]).scores["mean_attention"]
    finally:
        handle.remove()
        mixer.fused_attn = fused
    assert_near(score[0], seen[0].mean((1, 2)))


SIDES = {256: 16, 512: 64, 768: 144, 1024: 256, 1152: 324, 1280: 400, 1536: 576}


@pytest.mark.parametrize(("side", "count"), SIDES.items())
def test_token_counts(side, count):
    encoder = FastVitHdEncoder(replace(TINY, image_size=side)).eval()
    with torch.no_grad():
        tokens = encoder(torch.rand(1, 1, 3, side, side))
    assert tokens.shape == (1, 1, count, 128)
    assert tokens.grid == (side // 64, side // 64)


@pytest.mark.parametrize(("side", "count"), SIDES.items())
def test_token_counts_of_the_released_size(side, count):
    with torch.device("meta"):
        encoder = FastVitHdEncoder(FastVitHdConfig(image_size=side)).eval()
        features = encoder._run(torch.empty(1, 3, side, side), {}).features
    assert features.shape == (1, count, 3072)


@pytest.mark.parametrize("side", [0, 63, 150, 224, 336, 1000, -64])
def test_other_sizes_are_refused(side):
    with pytest.raises(ConfigError, match=f"image_size = {side}: must be a positive multiple of 64"):
        FastVitHdConfig(image_size=side)


def test_names_and_sizes_of_the_release():
    with torch.device("meta"):
        state = FastVitHdEncoder(FastVitHdConfig()).tower.state_dict()
    assert len(state) == 628
    released = to_release(state)
    assert len(released) == 628
    with_heads = len(released) + len(["head.proj"]) + len(["mm_projector.0", "mm_projector.2"]) * 2
    assert with_heads == 633
    norms = {name.rsplit(".", 1)[0] for name in state if name.endswith("running_mean")}
    assert len(norms) == 44
    shapes = {name: tuple(value.shape) for name, value in released.items()}
    for number, block in (("0", 1), ("2", 11), ("4", 23), ("7", 3), ("10", 1)):
        assert f"network.{number}.{block}.convffn.conv.bn.running_var" in shapes
        assert f"network.{number}.{block + 1}.convffn.conv.bn.running_var" not in shapes
    assert shapes["patch_embed.0.reparam_conv.weight"] == (96, 3, 3, 3)
    assert shapes["network.1.proj.0.lkb_reparam.weight"] == (192, 1, 7, 7)
    assert shapes["network.4.23.token_mixer.reparam_conv.weight"] == (384, 1, 3, 3)
    assert shapes["network.6.reparam_conv.weight"] == (768, 1, 7, 7)
    assert shapes["network.10.1.token_mixer.qkv.weight"] == (4608, 1536)
    assert shapes["network.10.1.convffn.fc1.weight"] == (6144, 1536, 1, 1)
    assert shapes["conv_exp.reparam_conv.weight"] == (3072, 1, 3, 3)
    assert shapes["conv_exp.se.reduce.weight"] == (192, 3072, 1, 1)
    assert set(to_timm(released)) == set(state)
    assert "network.3.proj.0.lkb_reparam.weight" in released
    assert "network.9.reparam_conv.bias" in released
    assert "network.7.0.layer_scale_1" in released
    counted = sum(
        value.numel() for name, value in state.items() if not name.split(".")[-1].startswith(("running", "num_"))
    )
    assert counted == pytest.approx(122.71e6, rel=1e-4)


def test_release_names_of_the_recording():
    released = {name.removeprefix(PREFIX): value for name, value in STATE.items() if name.startswith(PREFIX)}
    tower, training_form = tower_of(STATE)
    assert not training_form
    back = to_release(tower)
    assert set(back) == set(released) - {"head.proj"}
    assert all(torch.equal(back[name], released[name]) for name in back)


@pytest.mark.parametrize("prefix", ["model.vision_tower.timm_model.", ""])
def test_names_of_transformers_and_timm(encoder, pixels, prefix):
    other = FastVitHdEncoder(TINY).eval()
    load_fastvithd_tower(other, {f"{prefix}{name}": value for name, value in encoder.tower.state_dict().items()})
    assert torch.equal(other(pixels).features, encoder(pixels).features)


@pytest.mark.parametrize("release", [True, False])
def test_training_form_is_fused(pixels, release):
    torch.manual_seed(0)
    branched = build_tower(TINY.layers, TINY.dims, inference=False)
    generator = torch.Generator().manual_seed(0)
    for name, value in branched.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.3 * ("running_var" in name) - 0.1)
    state = branched.eval().state_dict()
    if release:
        back = {".conv_kxk.": ".rbr_conv.", ".conv_scale.": ".rbr_scale.", ".identity.": ".rbr_skip.",
                ".large_conv.": ".lkb_origin.", ".pos_emb.pos_enc.": ".pos_emb.pe."}  # fmt: skip
        renamed = {}
        for name, value in state.items():
            for theirs, ours in back.items():
                name = name.replace(theirs, ours)
            renamed[name] = value
        state = to_release(renamed)
    encoder = FastVitHdEncoder(TINY).eval()
    load_fastvithd_tower(encoder, state)
    with torch.no_grad():
        expected = branched.forward_features(pixels[0]).flatten(2).mT
    features = encoder(pixels).features[0]
    assert (features - expected).abs().max() <= 1e-5 * expected.abs().max()
    kept = FastVitHdEncoder(replace(TINY, branches=True)).eval()
    load_fastvithd_tower(kept, state)
    assert (kept(pixels).features[0] - expected).abs().max() <= 1e-5 * expected.abs().max()
    kept.fuse()
    assert set(kept.tower.state_dict()) == set(encoder.tower.state_dict())
    assert (kept(pixels).features[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_training_form_trains(pixels):
    encoder = FastVitHdEncoder(replace(TINY, branches=True, train_batch_norms=True))
    before = {name: value.clone() for name, value in encoder.tower.named_buffers()}
    encoder.train()
    features = encoder(pixels[:, :2]).features
    features.square().mean().backward()
    assert any(not torch.equal(value, before[name]) for name, value in encoder.tower.named_buffers())
    assert all(weight.grad is not None for weight in encoder.tower.parameters())
    with torch.no_grad():
        expected = encoder.tower.forward_features(pixels[0, :2]).flatten(2).mT
    assert_near(features[0], expected)
    encoder.requires_grad_(False).train()
    frozen = {name: value.clone() for name, value in encoder.tower.named_buffers()}
    encoder(pixels)
    assert all(torch.equal(value, frozen[name]) for name, value in encoder.tower.named_buffers())
    with pytest.raises(CheckpointError, match="branches = False"):
        load_fastvithd_tower(encoder, STATE)


def test_batch_norms_stay_as_they_are(encoder, pixels):
    before = {name: value.clone() for name, value in encoder.tower.named_buffers()}
    quiet = encoder(pixels).features
    encoder.train()
    try:
        torch.testing.assert_close(encoder(pixels).features, quiet, rtol=0, atol=0)
        assert_near(encoder(pixels[:, :1]).features, quiet[:, :1])
        assert all(torch.equal(value, before[name]) for name, value in encoder.tower.named_buffers())
    finally:
        encoder.eval()


def test_bad_input(encoder, pixels):
    with pytest.raises(ConfigError, match="multiple of 64"):
        FastVitHdConfig(image_size=1000)
    with pytest.raises(ConfigError, match="multiples of 32"):
        FastVitHdConfig(dims=(96, 192, 384, 700, 1536))
    with pytest.raises(InputError, match="128 pixels a side"):
        encoder(pixels[..., :64, :64])
    with pytest.raises(InputError, match="no class token; it can give mean_attention"):
        encoder(pixels, scores=["cls_attention"])
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        encoder(pixels * 4 - 2)
    with pytest.raises(CheckpointError, match="Apple hardware"):
        load_fastvithd_tower(encoder, {"language_model.layers.0.scales": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no FastViTHD"):
        load_fastvithd_tower(encoder, {"lm_head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unexpected"):
        load_fastvithd_tower(encoder, {**STATE, f"{PREFIX}network.4.0.other": torch.zeros(1)})
    assert encoder(torch.zeros(0, 2, 3, 128, 128)).shape == (0, 2, 4, 128)
