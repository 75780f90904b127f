"""LazyLLM: each position goes through each layer once at most, and who comes back has the keys of the plain LLM."""

import pytest
import torch
from nearness import assert_near
from policy_runs import LAYERS, answer, built, embeddings, llm, prompt
from transformers import DynamicCache

from mmllm.context.lazyllm import LazyLlm, LazyLlmConfig, cuts_of
from mmllm.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "cuts"), [(32, {9: 0.7, 16: 0.4, 22: 0.2}), (4, {1: 0.7, 2: 0.2}), (3, {1: 0.4, 2: 0.2})]
)
def test_cuts(layers, cuts):
    assert cuts_of(LazyLlmConfig(), layers) == cuts


@pytest.mark.parametrize("pad", [(0, 0), (0, 6)])
def test_no_position_goes_through_a_layer_twice(pad):
    current = prompt(built("lazyllm:depths=0.2+0.6,keep=0.6+0.3"), pad=pad)
    _, _, cache = answer(llm(), current, steps=20)
    length = current.visual.shape[1]
    came_back = 0
    for layer in cache.layers:
        for row in range(2):
            position = layer.position[row, 0][layer.valid[row, 0]].tolist()
            assert len(position) == len(set(position))
            assert [at for at in position if at >= length] == list(range(length, length + 20))  # in order
            came_back += len(position) - 20
    counts = current.counts
    assert counts.prompt_positions == pytest.approx(came_back / 2)  # all that was computed is in the cache
    first = prompt(built("lazyllm:depths=0.2+0.6,keep=0.6+0.3"), pad=pad)
    answer(llm(), first, steps=0)
    assert first.counts.prompt_positions < counts.prompt_positions <= current.valid.sum() / 2 * LAYERS


def test_the_shares_of_the_prompt_go_on():
    current = prompt(built("lazyllm:depths=0.2+0.6,keep=0.6+0.3"), rows=1)
    _, _, cache = answer(llm(), current, steps=0)
    assert [layer.keys.shape[2] for layer in cache.layers] == [32, 19, 19, 9, 9]


class Given(LazyLlm):
    """Leaves out one position of the prompt, and lets it come back at the second token."""

    out, passes = 20, 0

    def _chosen(self, scores, present, current, share):
        self.passes += 1  # one cut a pass
        return present & ((torch.arange(present.shape[1]) != self.out) | (self.passes > 2))


def test_who_comes_back_behind_living_positions_has_the_keys_of_the_plain_llm():
    model, policy = llm(), Given(LazyLlmConfig(depths=(0.2,), keep=(0.5,)))
    plain, current = DynamicCache(config=model.config), prompt(policy, rows=1)
    with torch.no_grad():
        model(inputs_embeds=embeddings(current), past_key_values=plain)
    _, _, cache = answer(model, current, steps=3)
    length = current.visual.shape[1]
    for number in range(1, LAYERS):
        record = cache.layers[number]
        order = record.position[0, 0].tolist()
        assert order == [at for at in range(length) if at != 20] + [length, 20, length + 1, length + 2]
        for at in [0, 19, 20]:
            assert_near(record.keys[0, :, order.index(at)], plain.layers[number].keys[0, :, at])
            assert_near(record.values[0, :, order.index(at)], plain.layers[number].values[0, :, at])
    # who stood behind it did not see it
    behind = (cache.layers[2].keys[0, :, 20] - plain.layers[2].keys[0, :, 21]).abs().max()
    assert float(behind) > 1e-3


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"depths": (), "keep": ()}, "depths"),
        ({"depths": (0.5, 0.2)}, "depths"),
        ({"depths": (0.0, 0.2, 0.3)}, "between 0 and 1"),
        ({"keep": (0.5,)}, "as many as depths: 3"),
        ({"keep": (0.5, 0.4, 0.0)}, "above 0"),
        ({"keep": (0.2, 0.4, 0.5)}, "descending"),
    ],
)
def test_bad_settings(fields, why):
    with pytest.raises(ConfigError, match=why):
        LazyLlmConfig(**fields)


def test_an_llm_of_one_layer_is_refused():
    with pytest.raises(ConfigError, match="at least 2 layers, not 1"):
        LazyLlm(LazyLlmConfig()).check(1)
