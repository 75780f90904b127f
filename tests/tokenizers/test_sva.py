"""The SVA connector: what each query sees, padding, towers, and an independent computation."""

import pytest
import torch
from torch import nn

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.preprocessing.padding import shown_area, shown_cells
from mmllm.tokens import VisualTokens

WIDTHS = (5, 7)


def sva(queries=4, grid=(4, 4), widths=WIDTHS, **settings):
    torch.manual_seed(0)
    described = {"name": "sva", "queries": queries, "width": 32, "depth": 2, **settings}
    part = registry.build("tokenizer", described, in_width=sum(widths), out_width=6, grid=grid, tower_widths=widths)
    return part.eval()


def tokens_of(frames=3, videos=1, side=4, **fields):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(videos, frames, side * side, sum(WIDTHS), generator=generator)
    return VisualTokens(features=features, grid=(side, side), **fields)


def by_hand(part, tokens, row, column, block):
    """The token of one query of the first frame, key by key."""
    side = tokens.grid[0]
    parts = tokens.features[0, 0].split(list(part.tower_widths), dim=-1)
    towers = [projector(own) for projector, own in zip(part.aux_projectors, parts, strict=True)]
    context = towers[0].mean(0)
    numbers = [(row * block + i) * side + column * block + j for i in range(block) for j in range(block)]
    query = part.query[0]
    for layer in part.layers:
        hidden = layer.proj_in(torch.cat([query, layer.proj_context(context)]))
        attention = layer.cross_attn
        keys, values = [], []
        for i, tower in enumerate(towers):
            for cell, number in enumerate(numbers):
                token = tower[number] + getattr(layer, f"pos_embed_{i}")[cell]
                keys.append(getattr(attention, f"k_proj_{i}")(token))
                values.append(getattr(attention, f"v_proj_{i}")(token))
        asked, keys, values = attention.q_proj(hidden), torch.stack(keys), torch.stack(values)
        heads = []
        for head in range(16):
            part_of = slice(2 * head, 2 * head + 2)
            weights = (keys[:, part_of] @ asked[part_of] / 2**0.5).softmax(0)
            heads.append(weights @ values[:, part_of])
        hidden = hidden + attention.o_proj(torch.cat(heads))
        query = query + layer.proj_out.linear_2(nn.functional.gelu(layer.proj_out.linear_1(layer.norm(hidden))))
    return part.projector(query)


@torch.no_grad()
def test_a_query_is_what_its_block_makes_of_it():
    part, tokens = sva(), tokens_of()
    out = part(tokens)
    assert out.features.shape == (1, 3, 4, 6)
    assert out.grid == (2, 2)
    for row in range(2):
        for column in range(2):
            expected = by_hand(part, tokens, row, column, 2)
            torch.testing.assert_close(out.features[0, 0, 2 * row + column], expected, rtol=0, atol=1e-5)
    assert {norm.eps for norm in part.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}


@torch.no_grad()
def test_one_query_a_patch_has_no_positions_and_one_tower_is_enough():
    part = sva(queries=16, widths=(12,))
    assert not [name for name, _ in part.named_parameters() if "pos_embed" in name]
    assert part(tokens_of()).features.shape == (1, 3, 16, 6)


def test_the_shown_area_is_the_published_one():
    assert shown_area(720, 1280, 12) == (range(3, 9), range(12))
    assert shown_area(1280, 720, 12) == (range(12), range(3, 9))
    assert shown_area(720, 1280, 24) == (range(5, 19), range(24))  # int(13.5) = 13 rows; one more is left
    assert shown_area(5, 5, 24) == (range(24), range(24))
    assert shown_area(1, 10000, 6) == (range(3, 3), range(6))  # no row is filled
    swapped = shown_cells(torch.tensor([[720, 1280]]), 12, swapped=True)
    assert torch.equal(swapped, shown_cells(torch.tensor([[1280, 720]]), 12))
    with pytest.raises(InputError, match="0x5 pixels shows nothing"):
        shown_area(0, 5, 4)


@torch.no_grad()
def test_padding_is_not_seen_and_its_queries_are_masked():
    part, wide = sva(queries=16, grid=(8, 8)), torch.tensor([[50, 100]])
    tokens = tokens_of(side=8)
    out = part(tokens.replace(frame_size=wide))
    assert out.mask.view(1, 3, 4, 4)[0, 0].tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
    features = tokens.features.clone()
    bars = ~shown_cells(wide, 8)[0].flatten()
    features[:, :, bars, WIDTHS[0] :] += 1  # of the second tower; the summary of the frame is the first's mean
    changed = part(tokens.replace(features=features, frame_size=wide))
    torch.testing.assert_close(changed.features[out.mask], out.features[out.mask])
    whole = part(tokens)
    assert whole.mask.all()


@torch.no_grad()
def test_the_released_code_exchanges_height_and_width_of_videos_only():
    tokens = tokens_of(side=8, frame_size=torch.tensor([[50, 100]]))
    released, correct = sva(queries=16, grid=(8, 8), correct_unpad=False), sva(queries=16, grid=(8, 8))
    tall = correct(tokens.replace(frame_size=torch.tensor([[100, 50]])))
    video = released(tokens)
    assert torch.equal(video.mask, tall.mask)
    assert torch.equal(video.features, tall.features)
    still = released(tokens.replace(still=True))
    assert torch.equal(still.mask, correct(tokens).mask)
    assert not torch.equal(still.mask, video.mask)


@torch.no_grad()
def test_reduced_tokens_are_all_that_is_seen():
    part, tokens = sva(), tokens_of()
    kept = torch.tensor([0, 1, 2, 3, 8, 15]).expand(1, 3, 6)
    out = part(tokens.take(kept))
    assert out.mask[0, 0].tolist() == [True, True, True, True]
    assert part(tokens.take(kept[..., :4])).mask[0, 0].tolist() == [True, True, False, False]
    features = tokens.features.clone()
    features[:, :, 4:8] += 1  # dropped
    assert torch.equal(part(tokens.replace(features=features).take(kept)).features, out.features)


@torch.no_grad()
def test_masked_frames_are_not_run_and_change_nothing():
    part, tokens = sva(), tokens_of(frames=40)
    mask = torch.ones(1, 40, 16, dtype=torch.bool)
    mask[0, 3:30] = False
    out = part(tokens.replace(mask=mask))
    assert not out.mask[0, 3:30].any()
    assert not out.features[0, 3:30].any()
    torch.testing.assert_close(out.features[0, 30:], part(tokens).features[0, 30:], rtol=0, atol=1e-6)
    empty = part(tokens.replace(mask=torch.zeros_like(mask)))
    assert not empty.mask.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 5}, "queries = 5: must be a square number"),
        ({"queries": 0}, "queries = 0"),
        ({"width": 33}, "divisible by heads = 16"),
        ({"depth": 0}, "depth = 0"),
        ({"queries": 9}, "divisible by 3; the encoder gives 4x4 patches"),
        ({"grid": None}, "1D tokens"),
        ({"grid": (4, 6)}, "4x6 patches"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        sva(**settings)


def test_tokens_on_another_grid_are_refused():
    with pytest.raises(InputError, match=r"built for 4x4 patches, not \(8, 8\)"):
        sva()(tokens_of(side=8))
