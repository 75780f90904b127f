"""Duo-LLM: routes and their costs, the oracle by brute force, learning, and what is refused."""

import pytest
import torch
from nearness import assert_near
from target_rows import rows_of, train

from mmllm.decoding.duo_llm import DuoLlm, DuoLlmConfig, Siblings, SiblingsConfig, all_big
from mmllm.decoding.route_losses import route_losses
from mmllm.decoding.routes import all_routes, best_routes, route_of, widths_of
from mmllm.decoding.trained_draft import text_decoder

TEXT, ANSWER = [5, 9, 11, 30, 31, 32, 33], 4


def siblings_of(model, **fields):
    torch.manual_seed(1)
    return Siblings(SiblingsConfig(**fields), model=model)


def test_all_routes_and_their_widths():
    routes = all_routes(3)
    assert len(routes) == len({tuple(route) for route in routes.tolist()}) == 27
    assert widths_of(routes, 64, 256).tolist() == [
        sum((0, 64, 256)[choice] for choice in route) for route in routes.tolist()
    ]
    assert route_of(["big"], 3) == [2, 2, 2]
    assert route_of(["skip", "small", "big"], 3) == [0, 1, 2]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_oracle_is_no_worse_than_any_route_that_keeps_its_budget(most):
    routes, losses = all_routes(3), torch.rand(20, 27, generator=torch.Generator().manual_seed(0))
    best = best_routes(losses, routes, most)
    for token in range(20):
        allowed = [number for number, route in enumerate(routes.tolist()) if route.count(2) <= most]
        assert int(best[token]) in allowed
        assert float(losses[token, best[token]]) == min(float(losses[token, number]) for number in allowed)
    with pytest.raises(ValueError, match="at most -1 big parts"):
        best_routes(losses, routes, -1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("trained", [False, True])
def test_along_the_big_parts_ids_are_those_of_greedy_decoding(
    make_decoder, prompts, greedy, check_counts, family, attention, trained
):
    model = make_decoder(family, attention)
    method = DuoLlm(DuoLlmConfig(route=("big",)), trained=siblings_of(model) if trained else None)
    for number, ids in enumerate(prompts(6)):
        options = {"max_new_tokens": 4 + number} | ({"repetition_penalty": 1.3} if number % 2 else {})
        expected = greedy(model, ids, **options)
        out = model.generate(ids, do_sample=False, custom_generate=method, **options)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))
        assert method.last.extra["ffn_width"] == method.last.extra["all_big_width"] == 64 * 2 * method.last.rounds


def by_hand(model, siblings, text, prompt, route):
    """Logits of each position along a route; of the prompt along the big parts."""
    decoder = text_decoder(model)
    hidden, length = decoder.embed_tokens(text), text.shape[1]
    places = torch.arange(length)[None]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    for number, layer in enumerate(decoder.layers):
        rotation = decoder.rotary_emb(hidden, position_ids=places)
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden), attention_mask=causal,
                                      position_embeddings=rotation)  # fmt: skip
        hidden = hidden + attended
        read = layer.post_attention_layernorm(hidden)
        added = (torch.zeros_like(read), siblings.small[number](read), layer.mlp(read))
        hidden = torch.cat([(hidden + added[2])[:, :prompt], (hidden + added[route[number]])[:, prompt:]], dim=1)
    return model.lm_head(decoder.norm(hidden))[0]


@pytest.mark.parametrize("names", [("small",), ("skip", "big", "small"), ("big", "skip", "skip")])
def test_tokens_take_their_route_and_cost_its_widths(make_decoder, names):
    model = make_decoder(eos_token_id=None, num_hidden_layers=3)
    siblings, ids = siblings_of(model), torch.tensor([[5, 9, 11]])
    method = DuoLlm(DuoLlmConfig(draft="given", route=names), trained=siblings)
    text = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=9)
    route = route_of(names, 3)
    logits = by_hand(model, siblings, text[:, :-1], 3, route)
    assert text[0, 3:].tolist() == logits[2:].argmax(-1).tolist()
    assert method.last.extra["ffn_width"] == 8 * int(widths_of(torch.tensor([route]), 16, 64))
    rows = rows_of(model, [text[0].tolist()], [9])
    chosen = torch.nn.functional.one_hot(torch.tensor(route), 3).float()
    trained = siblings.logits(rows, lambda layer, hidden: chosen[layer].expand(*hidden.shape[:2], -1))
    assert_near(trained[0, :-1].detach(), logits)


def test_routers_choose_as_in_training(make_decoder):
    model = make_decoder(eos_token_id=None, num_hidden_layers=3)
    siblings, ids = siblings_of(model), torch.tensor([[5, 9, 11]])
    method = DuoLlm(DuoLlmConfig(draft="given"), trained=siblings)
    text = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=9)
    logits = siblings.logits(rows_of(model, [text[0].tolist()], [9]), siblings.route)
    assert text[0, 3:].tolist() == logits[0, 2:-1].argmax(-1).tolist()
    extra = method.last.extra
    assert extra["skip"] + extra["small"] + extra["big"] == 3 * 8
    assert extra["ffn_width"] == 16 * extra["small"] + 64 * extra["big"] < extra["all_big_width"]


def test_the_losses_of_routes_are_those_of_single_passes(make_decoder):
    """The last token of a text takes each route; everything before it goes through the big parts."""
    model = make_decoder(num_hidden_layers=2)
    siblings, rows, routes = siblings_of(model), rows_of(model, [TEXT], [ANSWER]), all_routes(2)
    losses, own = route_losses(siblings, rows, routes)
    assert losses.shape == (ANSWER - 1, 9)
    for token in range(ANSWER - 1):
        end = len(TEXT) - ANSWER + token + 1
        for number, route in enumerate(routes.tolist()):
            row = by_hand(model, siblings, torch.tensor([TEXT[:end]]), end - 1, route)[-1]
            assert_near(losses[token, number], -row.log_softmax(-1)[TEXT[end]].detach())
    assert torch.all(losses.amin(dim=1) <= own + 1e-5)
    assert torch.all(torch.isclose(losses, own[:, None], atol=1e-4).any(dim=1))


def test_small_parts_learn_first_and_routers_later_and_the_model_stays(make_decoder):
    model = make_decoder(num_hidden_layers=2, initializer_range=0.1).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    siblings = siblings_of(model, random_steps=60, budget=0.3, penalty=8.0)
    start = {name: weight.clone() for name, weight in siblings.state_dict().items()}
    rows, small = rows_of(model, [TEXT], [ANSWER]), torch.tensor([[1, 1]])
    untrained = route_losses(siblings, rows, small)[0].mean()
    train(siblings, lambda: rows_of(model, [TEXT], [ANSWER]), steps=60, rate=0.02)
    assert route_losses(siblings, rows, small)[0].mean() < 0.7 * untrained
    middle = {name: weight.clone() for name, weight in siblings.state_dict().items()}
    assert all(torch.equal(middle[name], start[name]) for name in start if name.startswith("routers"))
    train(siblings, lambda: rows_of(model, [TEXT], [ANSWER]), steps=100, rate=0.02)
    after = siblings.state_dict()
    assert all(torch.equal(after[name], middle[name]) for name in start if name.startswith("small"))
    assert not all(torch.equal(after[name], middle[name]) for name in start if name.startswith("routers"))
    method = DuoLlm(DuoLlmConfig(draft="given"), trained=siblings)
    model.generate(torch.tensor([TEXT[:3]]), do_sample=False, custom_generate=method, max_new_tokens=ANSWER)
    assert method.last.extra["ffn_width"] <= 0.5 * method.last.extra["all_big_width"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_what_does_not_fit_is_refused(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9]])
    for fields in ({"share": 0.0}, {"share": 1.1}, {"random_steps": -1}, {"budget": -0.1}, {"penalty": -1.0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            SiblingsConfig(**fields)
    with pytest.raises(ValueError, match="route"):
        DuoLlmConfig(route=("huge",))
    for route in ((), ("small",), ("big", "small")):
        with pytest.raises(ValueError, match="routers need draft=FOLDER"):
            DuoLlmConfig(route=route)
    with pytest.raises(ValueError, match="route has 3 entries"):
        model.generate(ids, custom_generate=DuoLlm(DuoLlmConfig(route=("big",) * 3)), max_new_tokens=3)
    with pytest.raises(ValueError, match="huge: a layer can do skip, small, big"):
        route_of(["huge"], 2)
    other = siblings_of(make_decoder(num_hidden_layers=3))
    with pytest.raises(ValueError, match="3 layers and the model 2"):
        model.generate(ids, custom_generate=DuoLlm(DuoLlmConfig(draft="given"), trained=other), max_new_tokens=3)
    layers = make_decoder()
    del layers.model.layers[0].mlp
    with pytest.raises(ValueError, match="named mlp"):
        siblings_of(layers)
    assert "Duo-LLM" in DuoLlm(DuoLlmConfig(route=("big",))).other_law
    assert all_big(0, torch.zeros(1, 2, 4)).tolist() == [[[0, 0, 1], [0, 0, 1]]]
