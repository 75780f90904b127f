"""The last layer's feed-forward part on the last position alone: the same logits and keys, less work."""

import pytest
import torch
from nearness import assert_near
from transformers import AutoModelForCausalLM, DynamicCache

from mmllm.llm import last_position
from mmllm.llm.cache import CACHE


class Noting(torch.nn.Module):
    """Stands before a part and notes how many positions reach it."""

    def __init__(self, part):
        super().__init__()
        self.part, self.lengths = part, []

    def forward(self, hidden):
        self.lengths.append(hidden.shape[1])
        return self.part(hidden)


@pytest.fixture
def make_pair(decoder_configs):
    """A model with the shortened last layer, the same without, and what notes the positions of its last layer."""

    def make(family="llama", **fields):
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(AutoModelForCausalLM.from_config(decoder_configs[family](**fields)).eval())
        last_position.install(models[0], models[0].base_model)
        last_position.install(models[0], models[0].base_model)  # a second time changes nothing
        mlp = models[0].base_model.layers[-1].mlp
        assert len(mlp._forward_pre_hooks) == len(models[0]._forward_pre_hooks) == 1
        mlp.gate_proj = Noting(mlp.gate_proj)
        return *models, mlp.gate_proj.lengths

    return make


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@torch.no_grad()
def test_logits_and_keys_are_the_same(make_pair, family):
    short, whole, lengths = make_pair(family)
    ids = torch.randint(3, 100, (2, 9))
    mask = torch.tensor([[0, 0, *[1] * 7], [1] * 9])
    caches = DynamicCache(), DynamicCache()
    given = {"attention_mask": mask, "logits_to_keep": 1, "use_cache": True}
    logits = [model(ids, **given, **{CACHE: cache}).logits for model, cache in zip((short, whole), caches, strict=True)]
    assert lengths == [1]
    assert_near(logits[0], logits[1])
    for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert_near(ours.keys, theirs.keys)
        assert_near(ours.values, theirs.values)


def test_generate_writes_the_same_ids(make_pair):
    short, whole, lengths = make_pair(eos_token_id=None)
    for _ in range(5):
        ids = torch.randint(3, 100, (1, 11))
        lengths.clear()
        out = short.generate(ids, max_new_tokens=6, do_sample=False)
        assert out.tolist() == whole.generate(ids, max_new_tokens=6, do_sample=False).tolist()
        assert lengths == [1] * 6


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"logits_to_keep": 2},
        {"logits_to_keep": torch.tensor([0])},
        {"output_hidden_states": True},
        {"labels": None},
    ],
)
@torch.no_grad()
def test_whoever_looks_at_other_positions_gets_them(make_pair, given):
    short, whole, lengths = make_pair()
    ids = torch.randint(3, 100, (1, 7))
    given = {"logits_to_keep": 1, **given} if "output_hidden_states" in given else given
    given = {"labels": ids, "logits_to_keep": 0} if "labels" in given else given
    ours, theirs = short(ids, **given), whole(ids, **given)
    assert lengths == [7]
    assert_near(ours.logits, theirs.logits)
    if ours.hidden_states is not None:
        assert_near(ours.hidden_states[-1], theirs.hidden_states[-1])


def test_training_and_gradients_are_left_alone(make_pair):
    short, _, lengths = make_pair()
    ids = torch.randint(3, 100, (1, 7))
    short(ids, logits_to_keep=1)
    short.train()
    with torch.no_grad():
        short(ids, logits_to_keep=1)
    assert lengths == [7, 7]


@torch.no_grad()
def test_a_pass_that_fails_leaves_nothing_behind(make_pair):
    short, _, lengths = make_pair()
    with pytest.raises(IndexError):
        short(torch.tensor([[10**6]]), logits_to_keep=1)
    short.base_model(torch.randint(3, 100, (1, 7)))
    assert lengths == [7]


def test_llms_without_a_dense_part_stay_as_they_are():
    from transformers import GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20))
    last_position.install(model, model.base_model)
    assert not model._forward_pre_hooks


@torch.no_grad()
def test_our_models_and_hosted_ones_have_it(make_model):
    model = make_model()
    mlp = model.language_model.base_model.layers[-1].mlp
    mlp.gate_proj = Noting(mlp.gate_proj)
    model.generate(torch.tensor([[5, 9, 11]]), max_new_tokens=2, do_sample=False)
    assert mlp.gate_proj.lengths == [1, 1]
