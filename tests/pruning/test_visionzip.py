"""VisionZip: the recorded dominant and contextual tokens, CLIP's keys, identity at a full budget."""

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors import safe_open
from safetensors.torch import load_file

from mmllm import registry
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.encoders.siglip import SiglipConfig, SiglipEncoder
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.needs import reducers_for
from mmllm.tokens import VisualTokens

FILE = Path(__file__).resolve().parents[1] / "data" / "modern-visionzip.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["config"])["cases"]
TINY = {"image_size": 24, "patch_size": 4, "width": 32, "layers": 4, "heads": 4, "mlp_width": 48}


def recorded(case):
    hidden = GOLDEN[f"in.{case}.hidden"]
    side = int((hidden.shape[1] - 1) ** 0.5)
    patches = torch.arange(side * side)
    index = torch.cat([patches[-1:] + 1, patches]).expand(len(hidden), 1, -1)
    scores = {
        "cls_attention": GOLDEN[f"in.{case}.attention"][:, :, 0].mean(1).unsqueeze(1),
        "keys": GOLDEN[f"in.{case}.metric"].unsqueeze(1),
    }
    return VisualTokens(features=hidden.unsqueeze(1), grid=(side, side), index=index, scores=scores)


@pytest.mark.parametrize("case", CASES)
def test_recorded(case):
    dominant, contextual = CASES[case]["dominant"], CASES[case]["contextual"]
    tokens = recorded(case)
    reduced = registry.build("reducer", f"visionzip:dominant={dominant},contextual={contextual}")(tokens)
    expected = GOLDEN[f"out.{case}.dominant"].sort(-1).values
    assert torch.equal(reduced.index[:, 0, 1:dominant] + 1, expected[:, 1:])
    assert torch.equal(reduced.index[:, 0, 0], tokens.index[:, 0, 0])  # the class token comes first
    assert_near(reduced.features[:, 0], GOLDEN[f"out.{case}.tokens"])


def test_an_average_is_the_mean_of_all_its_tokens():
    tokens = recorded("a")
    whole = registry.build("reducer", "visionzip:dominant=3,contextual=1,average=true")(tokens)
    rest = torch.ones(2, 37, dtype=torch.bool).scatter(1, GOLDEN["out.a.dominant"][:, :3], False)
    means = torch.stack([tokens.features[image, 0, rest[image]].mean(0) for image in range(2)])
    assert_near(whole.features[:, 0, -1], means)


def test_keys_are_those_of_the_block_that_made_the_features():
    torch.manual_seed(0)
    encoder = ClipEncoder(ClipConfig(**TINY)).eval()
    pixels = torch.randn(1, 2, 3, 24, 24)
    keys = encoder(pixels, scores=["keys"]).scores["keys"]
    block = encoder.tower.encoder.layers[2]  # the features are hidden_states[-2], the output of the last block but one
    hidden = encoder.tower(pixels[0], output_hidden_states=True).hidden_states[2]
    expected = block.self_attn.k_proj(block.layer_norm1(hidden)).view(2, 37, 4, 8).mean(2)
    assert_near(keys[0], expected[:, 1:])
    siglip = SiglipEncoder(SiglipConfig(**TINY, output_grid=3)).eval()
    given = siglip(pixels, scores=["keys", "mean_attention"]).scores
    assert given["keys"].shape == (1, 2, 9, 8)
    assert given["mean_attention"].shape == (1, 2, 9)


def test_an_encoder_with_its_class_token_and_one_without():
    part = registry.build("reducer", "visionzip:ratio=0.25")
    for class_token, count in ((True, 37), (False, 36)):
        torch.manual_seed(0)
        encoder = ClipEncoder(ClipConfig(**TINY, class_token=class_token)).eval()
        reduced = part(encoder(torch.randn(1, 3, 3, 24, 24), scores=part.scores_needed))
        assert int(reduced.mask.sum()) == part.kept_tokens(count, 3) == 27
        assert bool((reduced.index[..., 0] == 36).all()) == class_token


def test_all_tokens_stay_at_a_full_budget_and_padding_frames_stay_empty():
    tokens = recorded("a")
    assert registry.build("reducer", "visionzip:ratio=1")(tokens) is tokens
    mask = torch.ones(2, 1, 37, dtype=torch.bool)
    mask[1] = False
    part = registry.build("reducer", "visionzip:dominant=9,contextual=4")
    padded = part(tokens.replace(mask=mask))
    assert torch.equal(padded.features[0], part(tokens).features[0])
    assert not bool(padded.mask[1].any())


def test_a_frame_with_fewer_tokens_is_reduced_as_if_it_were_alone():
    tokens = recorded("a")
    mask = torch.ones(2, 1, 37, dtype=torch.bool)
    mask[1, 0, 20:] = False
    part = registry.build("reducer", "visionzip:ratio=0.4")
    both = part(tokens.replace(mask=mask))
    short = tokens.replace(
        features=tokens.features[1:, :, :20], index=tokens.index[1:, :, :20], mask=None,
        scores={name: score[1:, :, :20] for name, score in tokens.scores.items()},
    )  # fmt: skip
    assert_near(both.features[1][both.mask[1]], part(short).features[0, 0])
    assert both.mask.sum(-1).flatten().tolist() == [15, 8]
    mask[1, 0, 2:] = False  # two tokens, which both stay
    assert part(tokens.replace(mask=mask)).mask.sum(-1).flatten().tolist() == [15, 2]


def test_bad_input():
    tokens = recorded("a")
    with pytest.raises(InputError, match=r"30 \+ 10 tokens of a frame, which has only 37"):
        registry.build("reducer", "visionzip:dominant=30,contextual=10")(tokens)
    with pytest.raises(InputError, match="keys"):
        registry.build("reducer", "visionzip:ratio=0.5")(
            tokens.replace(scores={"cls_attention": tokens.scores["cls_attention"]})
        )
    nan = {**tokens.scores, "cls_attention": tokens.scores["cls_attention"] * torch.nan}
    with pytest.raises(InputError, match="finite"):
        registry.build("reducer", "visionzip:ratio=0.5")(tokens.replace(scores=nan))
    for wrong in ("", "dominant=3", "ratio=0.5,contextual=2"):
        with pytest.raises(ConfigError, match="dominant and contextual, or ratio alone"):
            registry.build("reducer", f"visionzip:{wrong}" if wrong else "visionzip")
    for wrong in ("dominant=0,contextual=1", "dominant=1,contextual=0", "ratio=0"):
        with pytest.raises(ConfigError, match=r"at least 1|above 0"):
            registry.build("reducer", f"visionzip:{wrong}")
    assert not any(name.startswith("visionzip") for name in reducers_for({"cls_attention"}, "grid"))
    assert "visionzip:score=cls_attention" in reducers_for({"cls_attention", "keys"}, "grid")
