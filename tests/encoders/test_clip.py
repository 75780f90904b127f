"""CLIP's tower agrees with transformers and with the recorded numbers, and its scores with eager attention."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmllm import registry
from mmllm.encoders.clip import ClipConfig, ClipEncoder, clip_config, load_clip_tower
from mmllm.errors import CheckpointError, ConfigError, InputError

DATA = Path(__file__).resolve().parents[1] / "data"
TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=4, heads=4, mlp_width=48, chunk=3)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ClipEncoder(TINY).eval()


@pytest.fixture
def pixels():
    return torch.randn(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def eager(encoder, pixels):
    """Hidden states (L+1) and attentions (L), class token included, of transformers' eager implementation."""
    tower = CLIPVisionModel._from_config(encoder.tower.config, attn_implementation="eager")
    tower.load_state_dict(encoder.tower.state_dict())
    with torch.no_grad():
        out = tower.eval()(pixels.flatten(0, 1), output_hidden_states=True, output_attentions=True)
    return out.hidden_states, out.attentions


def test_recorded_tower():
    golden = load_file(DATA / "fastervlm-square.safetensors")
    encoder = ClipEncoder(TINY).eval()
    load_clip_tower(encoder, {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")})
    tokens = encoder(golden["in.pixels"].unsqueeze(1), scores=["cls_attention"])
    assert_near(tokens.features[:, 0], golden["out.features"])  # spread of 10
    assert_near(tokens.scores["cls_attention"][:, 0], golden["out.score"])


@pytest.mark.parametrize("select_layer", [-2, -1, -4, 1, 4])
def test_features_are_the_hidden_state(pixels, select_layer):
    torch.manual_seed(0)
    encoder = ClipEncoder(ClipConfig(**{**vars(TINY), "select_layer": select_layer})).eval()
    hidden_states, _ = eager(encoder, pixels)
    features = encoder(pixels).features.flatten(0, 1)
    assert_near(features, hidden_states[select_layer][:, 1:])


@pytest.mark.parametrize("layer", [0, 1, 2, 3, -1, -2])
def test_scores_are_rows_of_eager_attention(encoder, pixels, layer):
    _, attentions = eager(encoder, pixels)
    cls, mean = f"cls_attention@{layer}", f"mean_attention@{layer}"
    scores = encoder(pixels, scores=[cls, mean]).scores
    weights = attentions[layer].mean(1)
    assert_near(scores[cls].flatten(0, 1), weights[:, 0, 1:])
    assert_near(scores[mean].flatten(0, 1), weights.mean(1)[:, 1:])
    assert (scores[cls].sum(-1) < 1).all()
    assert (scores[cls] > 0).all()


def test_default_score_is_of_the_selected_block(encoder, pixels):
    scores = encoder(pixels, scores=["cls_attention", "cls_attention@-2"]).scores
    assert torch.equal(scores["cls_attention"], scores["cls_attention@-2"])


def test_nothing_past_the_selected_layer_is_computed(encoder, pixels, monkeypatch):
    expected = encoder(pixels).features
    monkeypatch.setattr(encoder.tower.encoder.layers[3], "forward", lambda *args, **kwargs: 1 / 0)
    assert torch.equal(encoder(pixels).features, expected)
    assert torch.equal(encoder(pixels, scores=["cls_attention@-1"]).features, expected)


def test_no_square_attention_matrix_is_held(encoder, pixels):
    shapes = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            shapes.extend(tuple(o.shape) for o in (out if isinstance(out, tuple) else (out,)) if hasattr(o, "shape"))
            return out

    with Recorder():
        encoder._score("cls_attention", encoder.tower.encoder.layers[0], torch.randn(2, 37, 32))
    assert all(shape[-2:] != (37, 37) for shape in shapes)


def test_padding_frames_are_skipped(encoder, pixels):
    whole = encoder(pixels, scores=["cls_attention"])
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    pixels[~mask] = float("nan")  # never looked at
    with pytest.raises(InputError, match="finite"):
        encoder(pixels)
    pixels[~mask] = 7.0
    tokens = encoder(pixels, frame_mask=mask, scores=["cls_attention"])
    assert_near(tokens.features[mask], whole.features[mask])
    assert (tokens.features[~mask] == 0).all()
    assert (tokens.scores["cls_attention"][~mask] == 0).all()
    assert torch.equal(tokens.frame_mask, mask)


def test_no_frames(encoder):
    tokens = encoder(torch.zeros(0, 3, 3, 24, 24), scores=["cls_attention"])
    assert tokens.shape == (0, 3, 36, 32)
    tokens = encoder(torch.zeros(2, 1, 3, 24, 24), frame_mask=torch.zeros(2, 1, dtype=torch.bool))
    assert tokens.shape == (2, 1, 36, 32)
    assert not tokens.mask.any()


def test_frozen_tower_records_no_graph(encoder, pixels):
    assert encoder(pixels).features.requires_grad
    encoder.requires_grad_(False)
    assert not encoder(pixels).features.requires_grad


def test_half_precision_scores_are_float32(encoder, pixels):
    tokens = encoder.bfloat16()(pixels, scores=["cls_attention"])
    assert tokens.features.dtype == torch.bfloat16
    assert tokens.scores["cls_attention"].dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 3, 24, 24), "B T 3 S S"),
        (torch.zeros(1, 1, 4, 24, 24), "B T 3 S S"),
        (torch.zeros(1, 1, 3, 24, 28), "24x28"),
        (torch.zeros(1, 1, 3, 24, 24, dtype=torch.uint8), "uint8"),
        (torch.full((1, 1, 3, 24, 24), float("inf")), "finite"),
    ],
)
def test_bad_pixels(encoder, bad, message):
    with pytest.raises(InputError, match=message):
        encoder(bad)


@pytest.mark.parametrize(
    "score", ["cls_attention@4", "cls_attention@-5", "cls_attention@x", "clsattention", "probe_attention"]
)
def test_bad_scores(encoder, pixels, score):
    with pytest.raises(InputError, match=r"layers -4 to 3|can give cls_attention, keys, mean_attention"):
        encoder(pixels, scores=[score])


@pytest.mark.parametrize("prefix", ["", "vision_model.", "vision_tower.vision_model.", "model.vision_tower."])
def test_upstream_prefixes(encoder, pixels, prefix):
    other = ClipEncoder(TINY).eval()
    state = {f"{prefix}{name}": value for name, value in encoder.tower.state_dict().items()}
    state[f"{prefix}embeddings.position_ids"] = torch.arange(37)
    load_clip_tower(other, {**state, "lm_head.weight": torch.zeros(1)})
    assert torch.equal(other(pixels).features, encoder(pixels).features)


def test_misfitting_weights_are_refused(encoder):
    state = encoder.tower.state_dict()
    with pytest.raises(CheckpointError, match=r"missing: post_layernorm.bias"):
        load_clip_tower(encoder, {k: v for k, v in state.items() if not k.startswith("post_")})
    with pytest.raises(CheckpointError, match=r"unexpected: encoder.layers.9.x"):
        load_clip_tower(encoder, {**state, "encoder.layers.9.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"misshaped: .*\(50, 32\) instead of \(37, 32\)"):
        load_clip_tower(encoder, {**state, "embeddings.position_embedding.weight": torch.zeros(50, 32)})
    with pytest.raises(CheckpointError, match="no CLIP vision tower"):
        load_clip_tower(encoder, {"lm_head.weight": torch.zeros(1)})


def test_config_of_transformers():
    config = CLIPVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                              image_size=336, patch_size=14).to_dict()  # fmt: skip
    assert clip_config(config) == ClipConfig()
    assert clip_config(config, select_layer=-1).blocks_run == 24
    with pytest.raises(ConfigError, match="relu"):
        clip_config({**config, "hidden_act": "relu"})


@pytest.mark.parametrize(
    "wrong",
    [{"select_layer": 0}, {"select_layer": 25}, {"select_layer": -25}, {"heads": 7}, {"chunk": 0}, {"layers": 0}],
)
def test_impossible_configs(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClipConfig(**wrong)


def test_by_name():
    config = registry.config_of("encoder", "clip:image_size=24,patch_size=4,width=32,layers=4,heads=4,mlp_width=48")
    encoder = registry.build("encoder", config)
    assert (encoder.width, encoder.grid) == (32, (6, 6))
    assert encoder.config.frames.size == 24
