"""HAMburger: steps of one token, positions kept, learning, and what is refused."""

import pytest
import torch
from nearness import assert_near
from target_rows import rows_of, train
from transformers import DynamicCache

from mmllm.decoding.hamburger import Burger, BurgerConfig, Groups, Hamburger, HamburgerConfig
from mmllm.llm.cache import CACHE

TEXTS, ANSWERS = [[5, 9, 11, 30, 31, 32, 33], [7, 8, 40, 41, 42]], [4, 3]


def burger(model, **fields):
    return Burger(BurgerConfig(**{"heads": 4, **fields}), model=model)


def method_of(draft, **fields):
    return Hamburger(HamburgerConfig(draft="given", **fields), trained=draft)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_steps_of_one_token_with_layers_that_were_not_trained_are_the_models_own(
    make_decoder, prompts, greedy, check_counts, family, attention
):
    model = make_decoder(family, attention)
    method = method_of(burger(model), confidence=1.1)
    for number, ids in enumerate(prompts(8)):
        options = {"max_new_tokens": 4 + number} | ({"repetition_penalty": 1.3} if number % 2 else {})
        expected = greedy(model, ids, **options)
        out = model.generate(ids, do_sample=False, custom_generate=method, **options)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))
        assert method.last.rounds == len(expected) - 1


def test_a_step_is_one_position_of_the_cache(make_decoder, prompts, check_counts):
    model = make_decoder(eos_token_id=None)
    draft = burger(model)
    draft.micro.stop_head[-1].bias.data[:] = -20.0  # never stop: four tokens a step
    method = method_of(draft)
    for ids in prompts(4):
        out = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=14)
        assert out.shape[1] == ids.shape[1] + 14
        counts = method.last
        check_counts(counts, 14)
        assert (counts.first_tokens, counts.emitted_per_round) == (4, (4, 4, 2))
        assert counts.extra["kv_positions"] == ids.shape[1] + counts.rounds
        assert counts.draft_passes == 14


@pytest.mark.parametrize("released", [False, True])
def test_steps_are_what_training_reads_in_one_pass(make_decoder, released):
    """Features at writing equal those of the same groups in a row of the training; the release's are one off."""
    model = make_decoder(eos_token_id=None, num_hidden_layers=3)
    draft = burger(model)
    draft.micro.stop_head[-1].bias.data[:] = -20.0
    noted = []
    note = draft.stacked
    draft.stacked = lambda outputs: noted.append(note(outputs)[:, -1]) or note(outputs)
    ids = torch.tensor([[5, 9, 11, 8]])
    out = model.generate(ids, do_sample=False, custom_generate=method_of(draft, released=released), max_new_tokens=12)
    draft.stacked = note
    text = out[0].tolist()
    rows = rows_of(model, [text], [12])
    groups = Groups.of(rows, lambda values, most: [4] * (len(values) // 4), 4)
    merged = draft.embedder(model.get_input_embeddings()(groups.ids), groups.sizes)
    features = draft._features(rows, groups, merged)
    if released:
        assert not torch.allclose(torch.cat(noted)[1:], features[1:].detach(), atol=1e-4)
    else:
        assert_near(torch.cat(noted), features.detach())


def test_it_learns_to_write_an_answer_in_fewer_steps(make_decoder, greedy):
    model = make_decoder(eos_token_id=None).requires_grad_(False)
    prompt = [5, 9, 11]
    answer = greedy(model, torch.tensor([prompt]), max_new_tokens=12)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(0)
    draft = burger(model, segments="sliding")
    losses = train(draft, lambda: rows_of(model, [[*prompt, *answer]], [12]), steps=80, rate=0.003)
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    method = method_of(draft.eval(), confidence=0.5)
    out = model.generate(torch.tensor([prompt]), do_sample=False, custom_generate=method, max_new_tokens=12)
    assert out[0, 3:].tolist() == answer
    assert method.last.rounds < 11


def test_left_padding_and_prompts_of_embeddings(make_decoder, prompts):
    model = make_decoder()
    method = method_of(burger(model), confidence=1.1)
    for ids in prompts(4):
        embeddings = torch.cat([torch.randn(1, 3, 32), model.get_input_embeddings()(ids) + 0.1], dim=1)
        mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
        given = {"inputs_embeds": embeddings, "attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(**given, custom_generate=method), model.generate(**given))


def test_sampled_texts_follow_the_seed(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9]])
    method = method_of(burger(model), confidence=1.1)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 10}
    torch.manual_seed(1)
    expected = model.generate(ids, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)


def test_what_does_not_fit_is_refused(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9]])
    for fields, message in (({"most": 0}, "most"), ({"most": 5}, "most"), ({"heads": 0}, "heads"),
                            ({"layers": 0}, "layers"), ({"features": (2, 1)}, "features"),
                            ({"features": (0, 1)}, "features")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            BurgerConfig(**fields)
    with pytest.raises(ValueError, match="confidence"):
        HamburgerConfig(draft="x", confidence=-0.1)
    with pytest.raises(ValueError, match="the last must be 2"):
        burger(model, features=(1,))
    with pytest.raises(ValueError, match="must divide the width 32"):
        burger(model, heads=5)
    cache = model(ids[:, :1], **{CACHE: DynamicCache()})[CACHE]
    with pytest.raises(ValueError, match="other weights have read"):
        model.generate(ids, custom_generate=method_of(burger(model)), past_key_values=cache, max_new_tokens=3)
    with pytest.raises(ValueError, match="2 layers and the model 3"):
        make_decoder(num_hidden_layers=3).generate(ids, custom_generate=method_of(burger(model)), max_new_tokens=3)
    with pytest.raises(ValueError, match="a row has no answer"):
        burger(model).loss(rows_of(model, TEXTS, [4, 0]))
    assert "HAMburger" in method_of(burger(model)).other_law
