"""DiffRate against the recorded block, the published costs, and what must hold for any schedule."""

import json
from pathlib import Path

import pytest
import torch
from einops import rearrange
from nearness import assert_near
from safetensors.torch import load_file
from torch.nn import functional as F

from mmllm import registry
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.diffrate_schedule import (
    CompressionSchedule,
    even_schedule,
    flops,
    published,
    read_schedules,
    write_schedules,
)
from mmllm.pruning.token_merging import (
    LiveTokens,
    attend,
    compress,
    in_raster_order,
    merge_targets,
    merged_mean,
    merged_sum,
    order_by,
)

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "diffrate-step.safetensors")
STATE = {name.removeprefix("state."): value for name, value in GOLDEN.items() if name.startswith("state.")}
PAIRS = [(17, 17), (12, 12), (17, 10), (12, 8), (9, 3), (20, 12), (10, 14), (3, 2)]
TINY = ClipConfig(image_size=24, patch_size=4, width=32, layers=4, heads=4, mlp_width=48)


def linear(x, name):
    return F.linear(x, STATE[f"{name}.weight"], STATE[f"{name}.bias"])


def norm(x, name):
    return F.layer_norm(x, (32,), STATE[f"{name}.weight"], STATE[f"{name}.bias"], 1e-6)


def attended():
    """The recorded block up to the attention's residual, and the class token's row."""
    x = GOLDEN["in.x"]
    q, k, v = rearrange(linear(norm(x, "norm1"), "attn.qkv"), "f n (three h d) -> three f h n d", three=3, h=4)
    mixed, row = attend(q, k, v, GOLDEN["in.size"].squeeze(-1))
    return x + linear(rearrange(mixed, "f h n d -> f n (h d)"), "attn.proj"), row


def test_recorded_attention():
    hidden, row = attended()
    assert_near(hidden, GOLDEN["out.x_after_attn"])
    assert_near(row[:, 1:], GOLDEN["out.cls_attn"])
    assert torch.equal(order_by(row), GOLDEN["out.order"].long())


@pytest.mark.parametrize(("prune", "merge"), PAIRS)
def test_recorded_block(prune, merge):
    hidden, row = attended()
    live = LiveTokens(size=GOLDEN["in.size"].squeeze(-1), owner=torch.arange(1, 17).expand(2, 16))
    hidden, live = compress(hidden, live, row, prune=prune, merge=merge)
    name = f"p{prune}_m{merge}"
    assert_near(hidden, GOLDEN[f"out.tokens.{name}"])
    assert_near(live.size.unsqueeze(-1), GOLDEN[f"out.size.{name}"])
    y = hidden + linear(F.gelu(linear(norm(hidden, "norm2"), "mlp.fc1")), "mlp.fc2")
    assert_near(y, GOLDEN[f"out.y.{name}"])


def test_recorded_merge():
    x = GOLDEN["in.merge_x"]
    target, cosine = merge_targets(x, 6)
    assert_near(cosine, GOLDEN["out.merge_node_max"])
    assert_near(merged_mean(x, target), GOLDEN["out.merge_mean"])
    assert_near(merged_sum(x.abs(), target), GOLDEN["out.merge_sum"])
    anyone, _ = merge_targets(x, 6, first=0)
    assert_near(merged_mean(x, anyone), GOLDEN["out.merge_mean_nocls"])


S_23 = ("[197, 192, 168, 143, 121, 105, 92, 74, 62, 45, 33, 3]", "[197, 180, 156, 127, 109, 98, 80, 66, 52, 37, 31, 3]")
S_29 = (
    "[197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3]",
    "[197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3]",
)
B_115 = (
    "[197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3]",
    "[197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3]",
)
B_MAE_115 = (
    "[197, 196, 182, 172, 162, 147, 131, 109, 101, 94, 70, 49]",
    "[197, 192, 178, 164, 150, 133, 115, 101, 96, 82, 49, 49]",
)


@pytest.mark.parametrize(
    ("lists", "width", "giga"),
    [(S_23, 384, 2.327), (S_29, 384, 2.905), (B_115, 768, 11.517), (B_MAE_115, 768, 11.517)],
)
def test_published_costs(lists, width, giga):
    counts = published(*lists).live(197)
    assert flops(counts, tokens=197, width=width, patch=16, classes=1000) / 1e9 == pytest.approx(giga, abs=1e-3)


@pytest.mark.parametrize(("width", "depth", "patch", "tokens", "giga"), [
    (192, 12, 16, 197, 1.254), (384, 12, 16, 197, 4.599), (768, 12, 16, 197, 17.564), (1024, 24, 16, 197, 61.555),
    (1280, 32, 14, 257, 167.296),
])  # fmt: skip
def test_uncompressed_costs(width, depth, patch, tokens, giga):
    cost = flops([tokens] * depth, tokens=tokens, width=width, patch=patch, classes=1000)
    assert cost / 1e9 == pytest.approx(giga, abs=1e-3)


def test_published_file(tmp_path):
    entry = {"2.3": {"prune_kept_num": S_23[0], "merge_kept_num": S_23[1]}}
    only_merge = {"5.6": {"prune_kept_num": "None", "merge_kept_num": "[196, 100, 300]"}}
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"ViT-S-DeiT": entry, "CAFormer": only_merge}))
    found = read_schedules(path)
    assert found["ViT-S-DeiT"]["2.3"] == published(*S_23)
    assert found["CAFormer"]["5.6"].live(196) == [196, 100, 100]
    write_schedules(path, found)
    assert read_schedules(path)["ViT-S-DeiT"] == found["ViT-S-DeiT"]
    for text in ("nonsense", "[]", '{"a": {"1": {"prune_kept_num": "[2]"}}}', '{"a": 3}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no file of DiffRate schedules"):
            read_schedules(path)
    with pytest.raises(ConfigError, match="no file of DiffRate schedules"):
        read_schedules(tmp_path / "nowhere.json")
    for wrong in ("[1, 2.5]", "__import__('os')", "12", "[True]"):
        with pytest.raises(ConfigError, match="whole numbers"):
            published(wrong, "[1]")


def test_numbers_above_what_is_there_change_nothing():
    schedule = CompressionSchedule(prune=(500, 500, 100), merge=(600, 50, 200))
    assert schedule.live(197) == [197, 50, 50]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ClipEncoder(TINY).eval()


@pytest.fixture
def pixels():
    return torch.randn(2, 2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def inside(**fields):
    return registry.build("reducer", {"name": "diffrate", **fields})


def test_schedule_that_does_nothing_is_the_plain_tower(encoder, pixels):
    plain = encoder(pixels)
    reducer = inside(prune=[37] * 3, merge=[37] * 3)
    tokens = reducer(encoder(pixels, inside=reducer))
    assert_near(tokens.features, plain.features)
    assert torch.equal(tokens.index, plain.index)
    assert (tokens.size == 1).all()


def test_dinov2_takes_it_inside_too(pixels):
    sizes = {"image_size": 24, "patch_size": 4, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48, "gated": False}
    tower = registry.build("encoder", {"name": "dinov2", **sizes}).eval()
    nothing = inside(prune=[37] * 3, merge=[37] * 3)
    assert_near(tower(pixels, inside=nothing).features, tower(pixels).features)
    tokens = tower(pixels, inside=inside(keep=7))
    assert tokens.shape == (2, 2, 7, 32)
    assert (tokens.index.diff(dim=-1) > 0).all()
    resampled = registry.build("encoder", {"name": "dinov2", **sizes, "output_grid": 3})
    with pytest.raises(ConfigError, match="cannot be resampled"):
        resampled(pixels, inside=inside(keep=7))


def test_dropping_and_merging(encoder, pixels):
    reducer = inside(prune=[37, 30, 21], merge=[37, 25, 13])
    tokens = reducer(encoder(pixels, inside=reducer))
    assert tokens.shape == (2, 2, 12, 32)
    assert (tokens.index.diff(dim=-1) > 0).all()
    assert ((tokens.size >= 1) & (tokens.size.sum(-1, keepdim=True) <= 36)).all()
    assert reducer.kept_tokens(36, 2) == 24
    alone = encoder(pixels[1:, 1:], inside=reducer)
    assert_near(tokens.features[1, 1], alone.features[0, 0])
    assert torch.equal(tokens.index[1, 1], alone.index[0, 0])


@pytest.mark.parametrize("keep", [1, 5, 20, 36])
def test_even_schedule(encoder, pixels, keep):
    reducer = inside(keep=keep)
    tokens = encoder(pixels, inside=reducer)
    assert tokens.shape[2] == keep
    assert tokens.size.sum(-1).tolist() == [[36, 36], [36, 36]]  # merges only: no patch is lost
    assert reducer.kept_tokens(36, 4) == 4 * keep
    schedule = even_schedule(577, 23, 145)
    assert schedule.merge[0] == 577
    assert schedule.merge[-1] == 145


def test_owners_partition_what_was_not_dropped():
    generator = torch.Generator().manual_seed(3)
    hidden, live = torch.randn(2, 37, 8, generator=generator), LiveTokens.at_first(torch.zeros(2, 37, 8))
    for prune, merge in ((30, 22), (22, 15), (12, 9)):
        row = torch.rand(2, hidden.shape[1], generator=generator)
        hidden, live = compress(hidden, live, row, prune=prune, merge=merge)
    held = torch.stack([owner[owner >= 0].bincount(minlength=9) for owner in live.owner])
    assert (held[:, 0] == 0).all()  # nothing merges into the class token
    assert (held[:, 1:] >= 1).all()
    features, index, size = in_raster_order(hidden, live)
    assert features.shape == (2, 8, 8)
    for b in range(2):
        first = [int((live.owner[b] == token).nonzero()[0]) for token in range(1, 9)]
        assert index[b].tolist() == sorted(first)
        assert size[b].sum() == (live.owner[b] >= 0).sum()


def test_clamped_sizes_stay_positive():
    generator = torch.Generator().manual_seed(0)
    hidden, live = torch.randn(1, 33, 4, generator=generator), LiveTokens.at_first(torch.zeros(1, 33, 4))
    row = torch.rand(1, 33, generator=generator)
    _, clamped = compress(hidden, live, row, prune=33, merge=2, clamp_size=True)
    assert (clamped.size >= 1).all()
    _, published_size = compress(hidden, live, row, prune=33, merge=2)
    assert published_size.size.min() < 1  # the one target takes unlike tokens
    queries = torch.zeros(1, 1, 2, 4)
    assert attend(queries, queries, queries, published_size.size)[0].isfinite().all()


def test_padding_frames(encoder, pixels):
    mask = torch.tensor([[True, False], [True, True]])
    tokens = encoder(pixels, frame_mask=mask, inside=inside(keep=5))
    assert torch.equal(tokens.frame_mask, mask)


def test_bad_input(encoder, pixels):
    with pytest.raises(ConfigError, match="schedule is for 2 blocks, the encoder runs 3"):
        encoder(pixels, inside=inside(prune=[37, 37], merge=[37, 37]))
    with pytest.raises(ConfigError, match="only the class token"):
        encoder(pixels, inside=inside(prune=[37, 37, 37], merge=[37, 37, 1]))
    for wrong in ({}, {"keep": 5, "prune": [3], "merge": [3]}, {"keep": 0}, {"prune": [3], "merge": [3, 3]},
                  {"prune": [0], "merge": [1]}):  # fmt: skip
        with pytest.raises(ConfigError):
            inside(**wrong)
    with pytest.raises(ConfigError, match="between 2 and 37"):
        encoder(pixels, inside=inside(keep=37))
    with pytest.raises(InputError, match="finite"):
        compress(
            torch.zeros(1, 3, 2),
            LiveTokens.at_first(torch.zeros(1, 3, 2)),
            torch.full((1, 3), torch.nan),
            prune=2,
            merge=2,
        )
    endless = LiveTokens(size=torch.tensor([[1.0, torch.inf, 1.0]]), owner=torch.tensor([[1, 2]]))
    with pytest.raises(InputError, match="sizes that are not finite"):
        compress(torch.zeros(1, 3, 2), endless, torch.full((1, 3), 0.3), prune=2, merge=2)
    for prune, merge in ((0, 2), (2, 0), (3, 1)):
        with pytest.raises(ConfigError, match="at least the class token stays"):
            compress(
                torch.ones(1, 3, 2),
                LiveTokens.at_first(torch.zeros(1, 3, 2)),
                torch.full((1, 3), 0.3),
                prune=prune,
                merge=merge,
            )
    for wrong in (
        "target=0",
        "target=1.5",
        "target=0.5,granularity=0",
        "target=0.5,keep=3",
        "target=0.5,cost_weight=-1",
    ):
        with pytest.raises(ConfigError):
            registry.config_of("reducer", f"diffrate:{wrong}")
    with pytest.raises(ConfigError, match="learns its schedule in training"):
        encoder(pixels, inside=inside(target=0.5))
    with pytest.raises(ConfigError, match=r"target = 0.01: with this tower and granularity, must be from 0\.\d+ to 1"):
        inside(target=0.01).prepare(encoder)
    with pytest.raises(InputError, match="ran without it"):
        inside(keep=5)(encoder(pixels))
    with pytest.raises(InputError, match="reduced inside"):
        encoder(pixels, scores=["cls_attention"], inside=inside(keep=5))
