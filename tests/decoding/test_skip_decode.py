"""SkipDecode: the schedule, texts against single passes, learning, and what is refused."""

import pytest
import torch
from nearness import assert_near
from target_rows import rows_of, train

from mmllm.decoding.skip_decode import SkipDecode, SkipDecodeConfig, SkippingConfig, SkippingLayers
from mmllm.decoding.skip_schedule import SkipSchedule, layer_numbers, layers_at
from mmllm.decoding.trained_draft import text_decoder


def test_the_number_of_layers_falls_evenly():
    assert [layers_at(step, 9, 2, 6) for step in range(9)] == [6, 6, 5, 4, 4, 4, 3, 2, 2]
    assert layers_at(40, 9, 2, 6) == 2
    assert {layers_at(step, 5, 4, 4) for step in range(5)} == {4}


@pytest.mark.parametrize(("layers", "least", "warmup"), [(3, 2, 1), (12, 4, 2), (6, 6, 3), (5, 1, 1)])
def test_sets_are_nested_and_hold_the_bottom_and_the_top(layers, least, warmup):
    schedule = SkipSchedule(layers=layers, least=least, most=layers, warmup=warmup, steps=9)
    before = set(range(layers))
    for step in range(9):
        used = schedule.at(step)
        assert len(used) == layers_at(step, 9, least, layers)
        assert set(used) <= before
        assert set(range(warmup)) <= set(used)
        assert list(used) == sorted(used)
        before = set(used)
    assert layer_numbers(3, 6, 1) == (0, 4, 5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_with_all_layers_ids_are_those_of_greedy_decoding(
    make_decoder, prompts, greedy, check_counts, family, attention
):
    model = make_decoder(family, attention)
    method = SkipDecode(SkipDecodeConfig(min_layers=2, max_layers=2))
    for number, ids in enumerate(prompts(10)):
        options = {"max_new_tokens": 4 + number} | ({"repetition_penalty": 1.3} if number % 2 else {})
        expected = greedy(model, ids, **options)
        out = model.generate(ids, do_sample=False, custom_generate=method, **options)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))
        assert method.last.extra["layer_passes"] == 2 * method.last.rounds


def test_left_padding_prompts_of_embeddings_and_samples_with_all_layers(make_decoder, prompts):
    model, method = make_decoder(), SkipDecode(SkipDecodeConfig(min_layers=2))
    for ids in prompts(4):
        embeddings = torch.cat([torch.randn(1, 3, 32), model.get_input_embeddings()(ids) + 0.1], dim=1)
        mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
        given = {"inputs_embeds": embeddings, "attention_mask": mask, "max_new_tokens": 8, "do_sample": True}
        torch.manual_seed(0)
        expected = model.generate(**given)
        torch.manual_seed(0)
        assert torch.equal(model.generate(**given, custom_generate=method), expected)


def logits_by_hand(model, text, prompt, schedule):
    """Logits of each position, when each token goes through its own layers; keys of earlier tokens are recomputed."""
    decoder = text_decoder(model)
    hidden = decoder.embed_tokens(text)
    length = text.shape[1]
    places = torch.arange(length)[None]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    for number, layer in enumerate(decoder.layers):
        after = layer(hidden, attention_mask=causal, position_ids=places,
                      position_embeddings=decoder.rotary_emb(hidden, position_ids=places))  # fmt: skip
        through = [place < prompt or number in schedule.at(place - prompt) for place in range(length)]
        hidden = torch.where(torch.tensor(through)[None, :, None], after, hidden)
    return model.lm_head(decoder.norm(hidden))[0]


@pytest.mark.parametrize("trained", [False, True])
def test_each_token_goes_through_the_layers_of_its_place(make_decoder, trained):
    model = make_decoder(eos_token_id=None, num_hidden_layers=4)
    draft = SkippingLayers(SkippingConfig(min_layers=2, tokens=9), model=model) if trained else None
    method = SkipDecode(SkipDecodeConfig(min_layers=2), trained=draft)
    ids = torch.tensor([[5, 9, 11]])
    text = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=9)
    schedule = SkipSchedule(layers=4, least=2, most=4, warmup=1, steps=9)
    assert method.last.extra["layer_passes"] == sum(len(schedule.at(step)) for step in range(8)) < 4 * 8
    expected = logits_by_hand(model, text[:, :-1], 3, schedule)
    assert text[0, 3:].tolist() == expected[2:].argmax(-1).tolist()
    if draft is not None:
        rows = rows_of(model, [text[0].tolist()], [9])
        assert_near(draft.logits(rows)[0, :-1].detach(), expected)


def test_it_learns_the_schedule_and_the_model_stays(make_decoder, greedy):
    model = make_decoder(eos_token_id=None, num_hidden_layers=3).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    prompt = [5, 9, 11]
    answer = greedy(model, torch.tensor([prompt]), max_new_tokens=10)
    draft = SkippingLayers(SkippingConfig(min_layers=1, tokens=10), model=model)
    given = {"do_sample": False, "max_new_tokens": 10, "custom_generate": SkipDecode(SkipDecodeConfig(), trained=draft)}
    untrained = model.generate(torch.tensor([prompt]), **given)[0, 3:].tolist()
    train(draft, lambda: rows_of(model, [[*prompt, *answer]], [10]), steps=60, rate=0.003)
    assert untrained != answer
    assert model.generate(torch.tensor([prompt]), **given)[0, 3:].tolist() == answer
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_does_not_fit_is_refused(make_decoder):
    model, ids = make_decoder(num_hidden_layers=3), torch.tensor([[5, 9]])
    for fields in ({"min_layers": 0}, {"max_layers": 0}, {"warmup": 0}, {"tokens": 1}, {"draft": ""}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            SkipDecodeConfig(**fields)
    for fields in ({"min_layers": 0}, {"max_layers": 0}, {"warmup": 0}, {"tokens": 1}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            SkippingConfig(**fields)
    for fields, message in (({"min_layers": 1, "warmup": 2}, "warmup = 2"), ({"max_layers": 4}, "max_layers = 4"),
                            ({"min_layers": 3, "max_layers": 2}, "min_layers = 3")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.generate(ids, custom_generate=SkipDecode(SkipDecodeConfig(**fields)), max_new_tokens=5)
    with pytest.raises(ValueError, match="one new token"):
        model.generate(ids, custom_generate=SkipDecode(SkipDecodeConfig()), max_new_tokens=1)
    assert "SkipDecode" in SkipDecode(SkipDecodeConfig()).other_law
