"""FasterVLM keeps what the recorded reference keeps, and what the class token attends to."""

from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors.torch import load_file
from torch.nn import functional as F

from mmllm import registry
from mmllm.encoders.clip import ClipConfig, ClipEncoder, load_clip_tower
from mmllm.errors import InputError
from mmllm.preprocessing.mosaic import pack
from mmllm.tokens import Tiling, VisualTokens

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "fastervlm-square.safetensors")
STATE = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}
TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=4, heads=4, mlp_width=48)


def projected(features):
    hidden = F.linear(features, STATE["model.mm_projector.0.weight"], STATE["model.mm_projector.0.bias"])
    return F.linear(F.gelu(hidden), STATE["model.mm_projector.2.weight"], STATE["model.mm_projector.2.bias"])


@pytest.mark.parametrize("keep", [36, 27, 18, 9, 4, 2, 1])
def test_recorded(keep):
    encoder = ClipEncoder(TINY).eval()
    load_clip_tower(encoder, STATE)
    reducer = registry.build("reducer", f"fastervlm:keep={keep}")
    tokens = reducer(encoder(GOLDEN["in.pixels"].unsqueeze(1), scores=reducer.scores_needed))
    present = tokens.on_grid()[1].flatten(2)[:, 0]
    assert torch.equal(present, GOLDEN[f"out.mask.k{keep}"].bool())
    image = projected(tokens.features[:, 0])
    for ids, visual, expected in zip(GOLDEN["in.input_ids"], image, GOLDEN[f"out.embeds.k{keep}"], strict=True):
        at = ids.tolist().index(-200)
        words = STATE["model.embed_tokens.weight"]
        sequence = torch.cat([words[ids[:at]], visual, words[ids[at + 1 :]]])
        assert_near(sequence, expected)  # the values have a spread of 64


def scored(scores):
    features = torch.randn(*scores.shape, 4, generator=torch.Generator().manual_seed(0))
    return VisualTokens(features=features, grid=(6, 6), scores={"cls_attention": scores})


def test_recorded_frames():
    scores = GOLDEN["out.cls_attn_heads"].mean(1)
    video = scored(scores.unsqueeze(0))  # the two images as two frames of one video
    present = registry.build("reducer", "fastervlm:keep=9")(video).on_grid()[1].flatten(2)[0]
    assert torch.equal(present, GOLDEN["out.mask.k9"].bool())


def test_scale_does_not_matter_and_order_of_patches_only_moves_them():
    scores = torch.rand(2, 3, 36, generator=torch.Generator().manual_seed(1))
    reducer = registry.build("reducer", "fastervlm:ratio=0.25")
    kept = reducer(scored(scores)).index
    assert torch.equal(reducer(scored(scores * 16)).index, kept)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    moved = reducer(scored(scores[..., order])).index
    assert torch.equal(order[moved].sort(-1).values, kept)


def test_a_planted_patch_survives():
    encoder = ClipEncoder(TINY).eval()
    load_clip_tower(encoder, STATE)
    block = encoder.tower.encoder.layers[2]
    attention, pixels = block.self_attn, GOLDEN["in.pixels"][:1]
    with torch.no_grad():
        hidden = encoder.tower.pre_layrnorm(encoder.tower.embeddings(pixels))
        for earlier in encoder.tower.encoder.layers[:2]:
            hidden = earlier(hidden, None)
        normed = block.layer_norm1(hidden)[0]
        planted = normed[1 + 20] - normed[1:].mean(0)
        # a key projection that only answers to patch 20, along the class token's query in every head
        attention.k_proj.weight.copy_(torch.outer(attention.q_proj(normed[0]), planted))
        attention.k_proj.bias.zero_()
    tokens = encoder(pixels.unsqueeze(1), scores=["cls_attention"])
    assert registry.build("reducer", "fastervlm:keep=1")(tokens).index.item() == 20


def test_other_scores():
    scores = torch.rand(1, 1, 36, generator=torch.Generator().manual_seed(1))
    tokens = scored(scores).replace(scores={"mean_attention": scores})
    reducer = registry.build("reducer", "fastervlm:keep=1,score=mean_attention")
    assert reducer.scores_needed == ("mean_attention",)
    assert reducer(tokens).index.item() == scores.argmax().item()


def test_tiles_are_reduced_each_by_itself():
    scores = torch.rand(1, 5, 36, generator=torch.Generator().manual_seed(1))
    tokens = scored(scores).replace(tiling=(Tiling(rows=2, cols=2, height=672, width=672),))
    out = registry.build("reducer", "fastervlm:keep=3")(tokens)
    assert out.mask.sum().item() == 15
    assert torch.equal(out.index, scores.topk(3).indices.sort().values)
    packed, mask = pack(out, unpad=False)
    assert torch.equal(packed[0, :3], out.features[0, 0])  # the whole image comes first
    assert mask.sum().item() == 15
    wrong = tokens.replace(tiling=(Tiling(rows=1, cols=2, height=9, width=9),))
    reducer = registry.build("reducer", "fastervlm:keep=3")
    with pytest.raises(InputError, match="image 0 has 5 partitions; its tiling says 3"):
        reducer(wrong)
