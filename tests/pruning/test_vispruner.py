"""VisPruner against its rule worked out by hand, and what must hold of every budget."""

import pytest
import torch

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.tokens import VisualTokens


def reducer(text):
    return registry.build("reducer", text)


def random_tokens(batch=1, frames=2, count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, frames, count, 6, generator=generator)
    scores = {"cls_attention": torch.rand(batch, frames, count, generator=generator)}
    return VisualTokens(features=features, grid=None, scores=scores)


def by_hand(features, scores, count, share, step):
    """The positions that stay, with lists."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    important, others = order[: int(count * share)], order[int(count * share) :]
    target = count - len(important)
    while len(others) > target:
        first, second = others[::2], others[1::2]
        if not second:
            others = first[:target]
            break
        best = {i: max(float(torch.cosine_similarity(features[i], features[j], dim=0)) for j in second) for i in first}
        first = sorted(first, key=lambda i: -best[i])
        others = first[min(step, len(others) - target, len(first)) :] + second
    return sorted(important + others)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 15, 20])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_by_hand(count, share, step):
    tokens = random_tokens(seed=count)
    reduced = reducer(f"vispruner:keep={count},important={share},step={step}")(tokens)
    for frame in range(2):
        expected = by_hand(tokens.features[0, frame], tokens.scores["cls_attention"][0, frame], count, share, step)
        assert reduced.index[0, frame].tolist() == expected


def test_two_equal_tokens_do_not_both_stay():
    tokens = random_tokens(frames=1, count=4)
    features = torch.eye(4).view(1, 1, 4, 4).clone()
    features[..., 2, :] = features[..., 0, :]
    scores = {"cls_attention": torch.tensor([[[0.4, 0.3, 0.35, 0.1]]])}
    kept = reducer("vispruner:keep=3,important=0,step=1")(tokens.replace(features=features, scores=scores)).index
    assert kept[0, 0].tolist() in ([0, 1, 3], [1, 2, 3])


def test_a_total_is_shared_and_padding_stays_empty():
    tokens = random_tokens(frames=3)
    mask = torch.ones(1, 3, 20, dtype=torch.bool)
    mask[0, 2] = False
    part = reducer("vispruner:total=9")
    reduced = part(tokens.replace(mask=mask))
    assert reduced.mask.sum(-1).tolist() == [[4, 5, 0]]
    assert part.kept_tokens(20, 3) == 9
    assert not part.by_frame


def test_a_frame_with_fewer_tokens_is_reduced_as_if_it_were_alone():
    tokens = random_tokens(frames=3)
    mask = torch.ones(1, 3, 20, dtype=torch.bool)
    mask[0, 1, ::2] = False
    reduced = reducer("vispruner:ratio=0.4")(tokens.replace(mask=mask))
    short = VisualTokens(
        features=tokens.features[:, 1:2, 1::2], grid=None,
        scores={"cls_attention": tokens.scores["cls_attention"][:, 1:2, 1::2]},
    )  # fmt: skip
    alone = reducer("vispruner:ratio=0.4")(short)
    assert reduced.mask.sum(-1).tolist() == [[8, 4, 8]]
    assert torch.equal(reduced.index[0, 1, :4], alone.index[0, 0] * 2 + 1)


def test_bad_input():
    tokens = random_tokens()
    with pytest.raises(InputError, match="cls_attention"):
        reducer("vispruner:keep=3")(tokens.replace(scores={}))
    with pytest.raises(InputError, match="finite"):
        reducer("vispruner:keep=3")(
            tokens.replace(scores={"cls_attention": tokens.scores["cls_attention"] * torch.nan})
        )
    for wrong in ("keep=3,important=2", "keep=3,step=0"):
        with pytest.raises(ConfigError, match=r"important|step"):
            reducer(f"vispruner:{wrong}")
