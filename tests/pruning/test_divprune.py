"""DivPrune keeps what the recorded reference keeps, and the tokens that are farthest from each other."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.pruning.diversity import cosine_distance, max_min_order
from mmllm.pruning.divprune import DivPruneConfig
from mmllm.tokens import VisualTokens

FILE = Path(__file__).resolve().parents[1] / "data" / "modern-divprune.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["config"])["cases"]


def reducer(text):
    return registry.build("reducer", text)


def random_tokens(*shape, seed=0, **fields):
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return VisualTokens(features=features, grid=None, **fields)


@pytest.mark.parametrize("case", CASES)
def test_recorded(case):
    tokens = GOLDEN[f"in.{case}.tokens"]
    reduced = reducer(f"divprune:ratio={CASES[case]['ratio']}")(VisualTokens(features=tokens[None, None], grid=None))
    assert torch.equal(reduced.index[0, 0], GOLDEN[f"out.{case}.kept"])
    assert torch.equal(reduced.features[0, 0], tokens[GOLDEN[f"out.{case}.kept"]])
    order = max_min_order(cosine_distance(tokens[None]), CASES[case]["kept"])
    assert torch.equal(order[0], GOLDEN[f"out.{case}.order"])


def test_each_choice_is_the_farthest_from_those_before():
    """Against a search over all tokens, one at a time."""
    features = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(3))
    distance = cosine_distance(features)[0]
    order = max_min_order(distance[None], 8)[0].tolist()
    for number in range(1, 8):
        free = [token for token in range(20) if token not in order[:number]]
        nearest = {token: min(float(distance[token, other]) for other in order[:number]) for token in free}
        assert order[number] == max(free, key=lambda token: nearest[token])


def test_all_tokens_and_equal_tokens():
    tokens = random_tokens(2, 3, 7, 5)
    assert torch.equal(reducer("divprune:ratio=1")(tokens).features, tokens.features)
    same = VisualTokens(features=torch.ones(1, 1, 6, 4), grid=None)
    assert len(set(reducer("divprune:keep=4")(same).index[0, 0].tolist())) == 4  # none is chosen twice


def test_fewer_tokens_are_a_subset_and_frames_do_not_matter_to_each_other():
    tokens = random_tokens(1, 4, 12, 5)
    few, more = (reducer(f"divprune:keep={keep}")(tokens).index for keep in (3, 6))
    for frame in range(4):
        assert set(few[0, frame].tolist()) <= set(more[0, frame].tolist())
        alone = tokens.replace(features=tokens.features[:, frame : frame + 1], index=None, mask=None)
        assert torch.equal(reducer("divprune:keep=3")(alone).index[0, 0], few[0, frame])


def test_padding_is_never_kept():
    mask = torch.ones(1, 2, 8, dtype=torch.bool)
    mask[0, 1, 2:] = False
    tokens = random_tokens(1, 2, 8, 4, mask=mask)
    reduced = reducer("divprune:keep=4")(tokens)
    assert reduced.mask.sum(-1).tolist() == [[4, 2]]
    assert set(reduced.index[0, 1][reduced.mask[0, 1]].tolist()) == {0, 1}


def test_a_half_is_rounded_to_the_even_number():
    assert [DivPruneConfig(ratio=0.5).fraction(tokens) for tokens in (1, 3, 5, 7)] == [1, 2, 2, 4]


def test_half_precision_chooses_alike():
    tokens = random_tokens(1, 1, 30, 8)
    half = tokens.replace(features=tokens.features.bfloat16())
    single = half.replace(features=half.features.float())
    assert torch.equal(reducer("divprune:keep=9")(half).index, reducer("divprune:keep=9")(single).index)


def test_bad_input():
    tokens = random_tokens(1, 1, 6, 4)
    broken = tokens.replace(features=tokens.features.masked_fill(torch.eye(6, 4).bool(), torch.nan))
    with pytest.raises(InputError, match="must be finite"):
        reducer("divprune:keep=2")(broken)
    with pytest.raises(InputError, match="a frame has only 6 tokens"):
        reducer("divprune:keep=7")(tokens)
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        reducer("divprune:ratio=0")
    with pytest.raises(InputError, match="1 to 6 tokens"):
        max_min_order(torch.zeros(1, 6, 6), 7)
