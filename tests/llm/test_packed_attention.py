"""Questions that share a row: attended to one by one as a mask over the whole row lets them, values and gradients."""

import pytest
import torch
from nearness import assert_near
from torch.nn import functional

from mmllm.errors import ConfigError
from mmllm.llm.packed_attention import packed_attention, packed_rows
from mmllm.modeling.placeholders import block_mask

SEGMENTS = torch.tensor(
    [
        [0, 0, 0, 1, 1, 2, 2, 2, 3, -1],
        [0, 0, 0, 0, 0, 0, 0, -1, -1, -1],
        [0, 0, 1, 2, 2, 2, 2, 2, 2, 2],
    ]
)


def test_the_parts_of_rows_are_found():
    rows = packed_rows(SEGMENTS)
    assert rows.beginning == 7
    assert rows.row.tolist() == [0, 0, 0, 2, 2]
    assert rows.position[rows.valid].tolist() == [3, 4, 5, 6, 7, 8, 22, 23, 24, 25, 26, 27, 28, 29]
    assert rows.shared.tolist() == [[True] * 3] * 3 + [[True, True, False]] * 2
    assert packed_rows(torch.tensor([[0, 0, -1], [0, 0, 0]])) is None


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_it_is_attention_with_a_mask(heads, key_heads):
    query = torch.randn(3, heads, 10, 8, requires_grad=True)
    key, value = (torch.randn(3, key_heads, 10, 8, requires_grad=True) for _ in range(2))
    mask = block_mask((SEGMENTS >= 0).long(), SEGMENTS, torch.float32)
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    given = packed_attention(query, key, value, packed_rows(SEGMENTS), 0.3)
    read = SEGMENTS >= 0
    assert_near(given[read], expected[read])
    assert (given[~read] == 0).all()
    weights = torch.randn_like(expected[read])
    for ours, theirs in zip(
        torch.autograd.grad((given[read] * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected[read] * weights).sum(), (query, key, value)),
        strict=True,
    ):
        assert_near(ours, theirs)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_model_has_the_same_loss_and_gradients(make_model, family):
    masked, packed = (make_model(family) for _ in range(2))
    packed.pack_attention()
    ids = torch.randint(5, 90, (2, 12))
    ids[:, 1] = 200
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, -1], [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]])
    inputs = {
        "input_ids": ids,
        "attention_mask": (segments >= 0).long(),
        "labels": ids.masked_fill(segments <= 0, -100),
        "segment_ids": segments,
        "pixel_values_videos": torch.rand(2, 4, 3, 64, 64),
    }
    losses = [model.train()(**inputs).loss for model in (masked, packed)]
    assert_near(losses[1], losses[0])
    torch.stack(losses).sum().backward()
    expected = dict(masked.named_parameters())
    for name, weight in packed.named_parameters():
        if expected[name].grad is not None:
            assert_near(weight.grad, expected[name].grad, terms=1 << 16)


def test_an_llm_that_caps_its_scores_is_refused(make_model):
    with pytest.raises(ConfigError):
        make_model("gemma2").pack_attention()
