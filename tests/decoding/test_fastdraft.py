"""FastDraft and S2D: greedy ids whatever the small model's weights are, their laws, and refusals."""

from types import SimpleNamespace

import pytest
import torch
from enumeration import ExactText, TableDrafter, distance, joint_law, law_of
from greedy_checks import check_greedy, through

from mmllm import registry
from mmllm.decoding.fastdraft import FastDraft, FastDraftConfig
from mmllm.decoding.spectr import Chains, SpecTrConfig

METHODS = ("fastdraft:draft=given", "s2d:draft=given,exits=1+2,threshold=0.1")
FAMILIES = ("llama", "qwen2", "gemma")
V = 5
TARGET, DRAFTER = torch.randn(2, V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5


def built(description, drafter):
    return registry.build("decoding", description, draft_model=drafter)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("description", METHODS)
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, description, family, attention):
    model = make_decoder(family, attention)
    method = built(description, make_decoder("llama", attention, seed=5))
    check_greedy(model, method, prompts(34), greedy, check_counts)  # 204 prompts with all families and attentions


@pytest.mark.parametrize("description", METHODS)
def test_left_padding_changes_no_draft(make_decoder, greedy, description):
    model, method = make_decoder(eos_token_id=None), built(description, make_decoder(seed=5))
    ids, padded = torch.tensor([[5, 9, 11, 4]]), torch.tensor([[0, 0, 0, 5, 9, 11, 4]])
    expected = through(model, method, ids, max_new_tokens=10)
    plain = method.last
    out = model.generate(
        padded, attention_mask=(padded != 0).long(), do_sample=False, max_new_tokens=10, custom_generate=method
    )
    assert out[0, 7:].tolist() == expected == greedy(model, ids, max_new_tokens=10)
    assert (method.last.rounds, method.last.matched) == (plain.rounds, plain.matched)


@pytest.mark.parametrize("description", METHODS)
def test_the_target_as_its_own_draft_is_always_accepted(make_decoder, check_counts, description):
    model = make_decoder(eos_token_id=None)
    method = built(description.replace("threshold=0.1", "threshold=2"), model)
    through(model, method, torch.tensor([[5, 9, 11]]), max_new_tokens=16)
    assert method.last.emitted_per_round == (5, 5, 5)
    assert method.last.acceptance == 1.0
    check_counts(method.last, 16)


@pytest.mark.parametrize("description", METHODS)
def test_an_end_token_or_the_limit_inside_a_right_draft_ends_the_text(make_decoder, greedy, description):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    method = built(description.replace("threshold=0.1", "threshold=2"), model)
    for place in range(1, 9):
        assert through(model, method, ids, max_new_tokens=place) == answer[:place]
        found = through(model, method, ids, max_new_tokens=16, eos_token_id=answer[place])
        assert found == answer[: answer.index(answer[place]) + 1]


@pytest.mark.parametrize("description", METHODS)
def test_a_draft_that_is_always_wrong_costs_a_pass_for_each_token(make_decoder, greedy, description):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=13)
    wrong = make_decoder(seed=5, tie_word_embeddings=False)
    wrong.lm_head.weight.data[:] = 0  # always id 0, which the target never says here
    assert 0 not in answer
    method = built(description, wrong)
    assert through(model, method, ids, max_new_tokens=13) == answer
    assert (method.last.rounds, method.last.matched) == (12, 0)


def test_a_drawn_chain_keeps_the_law():
    method = FastDraft(FastDraftConfig(draft="given", tokens=2), draft_model=object())

    def run(chance):
        text = ExactText(0, 3, chance)
        chain = SpecTrConfig(candidates=1, tokens=method.config.tokens)
        source = Chains(TableDrafter(DRAFTER, text), chain, SimpleNamespace(text=text))
        while not text.ended:
            draft = source.propose(text.last, text.room)
            method.accept(draft, TARGET[draft.tokens], text)
        return tuple(text.new)

    assert distance(law_of(run), joint_law(TARGET, 0, 3)) < 1e-12


@pytest.mark.parametrize("description", METHODS)
def test_sampled_texts_come_to_an_end(make_decoder, prompts, check_counts, description):
    model, method = make_decoder(), built(description, make_decoder(seed=5))
    for ids in prompts(4):
        out = model.generate(ids, custom_generate=method, do_sample=True, temperature=0.8, top_k=9, max_new_tokens=10)
        check_counts(method.last, out.shape[1] - ids.shape[1])


BAD = {
    "fastdraft": "draft", "fastdraft:draft=own": "draft", "fastdraft:draft=x,tokens=0": "tokens",
    "fastdraft:draft=x,layers=1": "layers", "s2d": "draft", "s2d:draft=own": "draft",
    "s2d:draft=x,threshold=-1": "threshold", "s2d:draft=x,exits=2+1": "exits", "s2d:draft=x,exits=0+1": "exits",
    "s2d:draft=x,tokens=0": "tokens",
}  # fmt: skip


@pytest.mark.parametrize("description", BAD)
def test_settings_outside_their_range_are_refused(description):
    with pytest.raises(ValueError, match=BAD[description]):
        registry.config_of("decoding", description)


@pytest.mark.parametrize("description", METHODS)
def test_two_vocabularies_are_refused_by_their_sizes(make_decoder, description):
    with pytest.raises(ValueError, match="90 ids and the target 120"):
        make_decoder().generate(torch.tensor([[5]]), max_new_tokens=4,
                                custom_generate=built(description, make_decoder(vocab_size=90)))  # fmt: skip


def test_more_layers_than_the_draft_has_and_a_folder_without_exits_are_refused(make_decoder, tmp_path):
    with pytest.raises(ValueError, match="the draft has 2 layers"):
        through(make_decoder(), built("s2d:draft=given,exits=1+3", make_decoder()), torch.tensor([[5]]))
    with pytest.raises(ValueError, match="no trained draft is there"):
        through(make_decoder(), built(f"s2d:draft={tmp_path}", make_decoder()), torch.tensor([[5]]))
