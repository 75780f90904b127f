"""transformers' own drafts under the same flag."""

import pytest
import torch

from mmllm import registry
from mmllm.decoding.choosing import decoding_of


@pytest.mark.parametrize("description", ["prompt-lookup", "prompt-lookup:tokens=3,ngram=1", "assisted:layers=1"])
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, description):
    model, method = make_decoder(), decoding_of(description)
    for ids in prompts(6):
        ids = torch.cat([ids, ids], dim=1)
        expected = greedy(model, ids, max_new_tokens=12)
        out = model.generate(ids, custom_generate=method, max_new_tokens=12, do_sample=False)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))
    assert bool(method.total.draft_passes) == ("assisted" in description)


def test_another_model_assists(make_decoder, prompts, greedy, check_counts):
    model, drafter = make_decoder(), make_decoder("qwen2", seed=1)
    method = registry.build("decoding", {"name": "assisted", "draft": "given"}, draft_model=drafter)
    for ids in prompts(3):
        out = model.generate(ids, custom_generate=method, max_new_tokens=9, do_sample=False)
        expected = greedy(model, ids, max_new_tokens=9)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("assisted", "layers"),
        ("assisted:layers=1,draft=x", "not both"),
        ("assisted:layers=0", "layers"),
        ("prompt-lookup:tokens=0", "tokens"),
        ("prompt-lookup:ngram=0", "ngram"),
    ],
)
def test_settings_that_do_not_fit_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        decoding_of(description)


def test_too_many_layers_and_another_vocabulary_are_refused(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9]])
    with pytest.raises(ValueError, match="the model has 2"):
        model.generate(ids, custom_generate=decoding_of("assisted:layers=2"), max_new_tokens=3)
    other = registry.build("decoding", {"name": "assisted", "draft": "x"}, draft_model=make_decoder(vocab_size=90))
    with pytest.raises(ValueError, match="90 ids and the target 120"):
        model.generate(ids, custom_generate=other, max_new_tokens=3)
