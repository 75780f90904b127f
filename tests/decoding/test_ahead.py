"""Extra rows: what they read and learn, in the released step of Parallel Prompt Decoding and against single passes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from enumeration import ExactText, distance, joint_law, law_of
from greedy_checks import check_embeddings
from nearness import assert_near
from safetensors.torch import load_file
from target_rows import rows_of, train
from transformers import LogitsProcessorList, StoppingCriteriaList, TemperatureLogitsWarper

from mmllm import registry
from mmllm.decoding import acceptance
from mmllm.decoding.ahead import Places, ranks_of
from mmllm.decoding.ahead_drafts import AheadDrafts
from mmllm.decoding.hidden_transfer import HiddenTransfer, HiddenTransferConfig, Transfer, TransferConfig
from mmllm.decoding.ppd import Ppd, PpdConfig, PromptTokens, PromptTokensConfig
from mmllm.decoding.sparse_tree import full_trees, sparse_trees
from mmllm.decoding.trained_draft import text_decoder
from mmllm.decoding.tree import Request
from mmllm.decoding.writing import Written
from mmllm.tokens import VisualSequence

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-ppd-tree.safetensors")


def text_of(ids, limit=99, processor=None):
    return Written(torch.tensor([ids]), processor or LogitsProcessorList(), StoppingCriteriaList(), limit=limit)


def released_step(processor=None):
    """The source behind a root that had all prompt tokens, as the released code drafts from it."""
    words = torch.nn.Embedding.from_pretrained(GOLDEN["step.embeddings"])
    root = int(GOLDEN["step.logits"].argmax())
    text = text_of([root], processor=processor)
    request = Request(
        model=SimpleNamespace(get_input_embeddings=lambda: words), text=text, input_ids=text.ids, inputs={},
        vocabulary=len(words.weight), forbidden=(),
    )  # fmt: skip
    trees = sparse_trees(GOLDEN["accuracies"], int(GOLDEN["limit"]))
    source = AheadDrafts(request, trees, GOLDEN["step.prompt_embeddings"])
    first = source.propose(root, 99)
    assert len(first) == 4
    source.observe(first, torch.cat([GOLDEN["step.logits"][0], GOLDEN["step.prompt_logits"][0]]), [0])
    return source.propose(root, 99), text


def candidates(draft):
    """Tokens along the paths to leaves, the last leaf first, and these paths."""
    words = [node for node in range(len(draft)) if draft.is_token[node]]
    leaves = [node for node in words if not draft.children[node]]
    paths = [draft.path_to(node) for node in sorted(leaves, key=words.index, reverse=True)]
    return [[draft.ids[node] for node in path] for path in paths], paths


def test_drafts_are_those_of_the_released_step():
    draft, _ = released_step()
    assert torch.equal(draft.embeddings, GOLDEN["step.tree_embeds"][0])
    found, _ = candidates(draft)
    expected = GOLDEN["step.candidates"].tolist()
    retrieved = GOLDEN["state3.retrieve_indices"].tolist()
    assert found == [
        row[: sum(place >= 0 for place in places)] for row, places in zip(expected, retrieved, strict=True)
    ]


@pytest.mark.parametrize("rule", ["greedy", "typical"])
def test_what_is_accepted_is_what_the_released_step_accepts(rule):
    processor = LogitsProcessorList([TemperatureLogitsWarper(0.7)]) if rule == "typical" else None
    draft, text = released_step(processor)
    logits = torch.zeros(len(draft), 30)
    logits[draft.is_token] = GOLDEN["step.node_logits"]
    path = (acceptance.typical if rule == "typical" else acceptance.point)(draft, logits, text)
    _, paths = candidates(draft)
    assert len(path) == int(GOLDEN[f"step.{rule}_accept"]) + 1
    best = paths[int(GOLDEN[f"step.{rule}_best"])]
    assert [draft.ids[node] for node in path] == [draft.ids[node] for node in best[: len(path)]]


# --- learning ---------------------------------------------------------------------------------------------------


TEXTS, ANSWERS = [[5, 9, 11, 30, 31, 32, 33], [7, 8, 40, 41, 42]], [4, 3]


def test_places_are_tokens_of_answers_as_far_as_the_answer_goes(make_decoder):
    places = Places.of(rows_of(make_decoder(), TEXTS, ANSWERS), 2)
    assert places.position[0].tolist() == [3, 4, 5, 6]
    assert places.position[1, :3].tolist() == [2, 3, 4]
    yes, no, one = [True, True], [False, False], [True, False]
    assert places.is_right.tolist() == [[yes, one, no, no], [one, no, no, no]]


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_is_learned_from_is_what_a_pass_of_each_path_gives(make_decoder, family):
    """Prompt tokens and guessed states of all places in one pass are those of one place alone."""
    model = make_decoder(family, num_hidden_layers=3)
    rows = rows_of(model, TEXTS, ANSWERS)
    places = Places.of(rows, 2)
    prompt = PromptTokens(PromptTokensConfig(tokens=2), model=model)
    guesses = prompt.guesses(rows, places)
    for row, count in enumerate(ANSWERS):
        for place in range(count):
            before = rows.embeddings[row : row + 1, : places.position[row, place] + 1]
            alone = model(inputs_embeds=torch.cat([before, prompt.embeddings[None]], dim=1)).logits[0, -2:]
            assert_near(guesses[row, place], alone)


def test_guessed_states_see_the_text_and_each_other_in_the_upper_layers_only(make_decoder):
    """The same layers, one after another, with the guessed states put in between."""
    model = make_decoder(num_hidden_layers=3)
    rows = rows_of(model, TEXTS[:1], ANSWERS[:1])
    draft = Transfer(TransferConfig(tokens=2, layer=1), model=model)
    draft.maps.data += 0.1 * torch.randn_like(draft.maps)
    places = Places.of(rows, 2)
    guesses = draft.guesses(rows, places)
    decoder = text_decoder(model)
    for place in range(ANSWERS[0]):
        end = int(places.position[0, place]) + 1
        lower = model(rows.ids[:, :end], output_hidden_states=True).hidden_states[1]
        hidden = torch.cat([lower, (draft.maps @ lower[0, -1])[None]], dim=1)
        positions = torch.arange(end + 2)[None]
        causal = torch.full((end + 2, end + 2), torch.finfo(torch.float32).min).triu(1)[None, None]
        for layer in decoder.layers[1:]:
            hidden = layer(hidden, attention_mask=causal, position_ids=positions,
                           position_embeddings=decoder.rotary_emb(hidden, position_ids=positions))  # fmt: skip
        assert_near(guesses[0, place], model.lm_head(decoder.norm(hidden))[0, -2:])


@pytest.mark.parametrize("name", ["ppd", "hidden-transfer"])
def test_training_lowers_the_divergence_and_the_target_stays(make_decoder, name):
    model = make_decoder(num_hidden_layers=3, initializer_range=0.1).requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    draft = registry.build("draft", {"name": name, "tokens": 2}, model=model)
    losses = train(draft, lambda: rows_of(model, TEXTS, ANSWERS), steps=30, rate=0.02)
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.all(draft.accuracies.diff(dim=1) <= 0)
    assert torch.all(draft.accuracies.sum(dim=1) <= 1 + 1e-5)


def test_ranks_of_right_tokens():
    guesses = torch.tensor([[0.1, 0.9, 0.5]])
    assert ranks_of(guesses, torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([True])).tolist() == [1]
    assert ranks_of(guesses, torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([False])).tolist() == [-1]


def test_rows_without_answers_are_refused(make_decoder):
    with pytest.raises(ValueError, match="no row has an answer"):
        Places.of(rows_of(make_decoder(), TEXTS, [0, 0]), 2)


# --- texts ------------------------------------------------------------------------------------------------------


def method_of(name, model, **fields):
    """A method with random weights."""
    if name == "ppd":
        return Ppd(PpdConfig(draft="given", **fields), trained=PromptTokens(PromptTokensConfig(), model=model))
    draft = Transfer(TransferConfig(), model=model)
    draft.maps.data += 0.1 * torch.randn_like(draft.maps)
    return HiddenTransfer(HiddenTransferConfig(draft="given", **fields), trained=draft)


NAMES = ["ppd", "hidden-transfer"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, name, family, attention):
    model = make_decoder(family, attention)
    method = method_of(name, model)
    for number, ids in enumerate(prompts(34)):  # 204 prompts with all families and attentions
        options = {"max_new_tokens": 1 + number % 12}
        if number % 3 == 1:
            options |= {"repetition_penalty": 1.3, "min_new_tokens": 1 + number % 4}
        expected = greedy(model, ids, **options)
        out = model.generate(ids, do_sample=False, custom_generate=method, **options)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))
        assert method.last.peak_kv_positions > ids.shape[1] or len(expected) == 1


@pytest.mark.parametrize("name", NAMES)
def test_extra_rows_never_stay_in_the_cache(make_decoder, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    out = model.generate(ids, max_new_tokens=8, do_sample=False, return_dict_in_generate=True,
                         custom_generate=method_of(name, model))  # fmt: skip
    cache = out.past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [3 + 8 - 1] * 2
    fresh = model(out.sequences[:, :-1]).past_key_values
    for own, other in zip(cache.layers, fresh.layers, strict=True):
        assert_near(own.keys, other.keys)
        assert_near(own.values, other.values)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_embeddings_and_left_padding(make_decoder, prompts, name):
    for family in ("llama", "qwen2", "gemma"):
        model = make_decoder(family)
        method = method_of(name, model)
        check_embeddings(model, method, prompts(4))


@pytest.mark.parametrize("name", NAMES)
def test_sampled_ids_are_those_of_plain_sampling_with_the_same_seed(make_decoder, prompts, name):
    model = make_decoder()
    method = method_of(name, model)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95, "max_new_tokens": 10}
    for seed, ids in enumerate(prompts(10)):
        torch.manual_seed(seed)
        expected = model.generate(ids, **options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)


@pytest.mark.parametrize(("levels", "count", "words"), [(1, 3, 5), (2, 3, 5), (2, 4, 3)])
def test_sampled_texts_keep_the_law(levels, count, words):
    """All decisions are enumerated: five words, laws of the target from a table, guesses of extra rows from another."""
    generator = torch.Generator().manual_seed(3)
    target, other = torch.randn(2, words, words, generator=generator, dtype=torch.float64) * 1.5
    trees = full_trees(torch.tensor([[0.5, 0.3, 0.1]] * levels), 4)
    drafted = []

    def run(chance):
        text = ExactText(0, count, chance)
        request = Request(model=None, text=text, input_ids=text.ids, inputs={}, vocabulary=words, forbidden=())
        source = AheadDrafts(request, trees, embeddings=None)
        while not text.ended:
            draft = source.propose(text.last, text.room)
            drafted.append(sum(map(len, draft.children)))
            logits = target[draft.tokens]
            for row, number in enumerate(source.number):
                if number:
                    logits[row] = other[draft.ids[source.behind[row]]].roll(number)
            path = acceptance.point(draft, logits, text)
            source.observe(draft, logits, path)
        return tuple(text.new)

    assert distance(law_of(run), joint_law(target, 0, count)) < 1e-12
    assert max(drafted) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_visual_tokens_in_the_prompt(make_model, prompts, name):
    for family in ("llama", "qwen2", "gemma"):
        model = make_model(family)
        method = method_of(name, model)
        for ids in prompts(3, vocabulary=100):
            video = VisualSequence(
                embeddings=torch.randn(1, 6, 32), mask=torch.ones(1, 6, dtype=torch.bool),
                frame=torch.arange(6)[None], blocks=(("frames", 6),),
            )  # fmt: skip
            ids = torch.cat([torch.tensor([[200]]), ids], dim=1)
            given = {"input_ids": ids, "sequences": {200: video}, "max_new_tokens": 10, "do_sample": False}
            assert torch.equal(model.generate(**given, custom_generate=method), model.generate(**given))


@pytest.mark.parametrize("name", NAMES)
def test_end_tokens_and_stopping_criteria_inside_a_draft(make_decoder, greedy, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=14)
    method = method_of(name, model)
    for end in dict.fromkeys(answer):
        expected = answer[: answer.index(end) + 1]
        out = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=14, eos_token_id=end)
        assert out[0, 3:].tolist() == expected
    stop = StoppingCriteriaList([lambda text, _: torch.tensor([text.shape[1] >= 3 + 7])])
    out = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=14, stopping_criteria=stop)
    assert out[0, 3:].tolist() == answer[:7]


@pytest.mark.parametrize("shift", [0, 1])
def test_guesses_that_are_always_right_or_always_wrong(make_decoder, greedy, check_counts, shift):
    """With one level, right guesses give two tokens a pass, wrong ones one."""
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=12)

    class Known(Ppd):
        def start(self, request):
            source = super().start(request)
            observe = source.observe

            def known(draft, logits, path):
                observe(draft, logits, path)
                word = answer[min(request.text.count, 11)]
                source.guesses = [[(word + shift) % 120]]

            source.observe = known
            return source

    draft = PromptTokens(PromptTokensConfig(tokens=1), model=model)
    method = Known(PpdConfig(draft="given"), trained=draft)
    out = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=12)
    assert out[0, 3:].tolist() == answer
    check_counts(method.last, 12)
    assert method.last.emitted_per_round == ((1,) * 11 if shift else (1, 2, 2, 2, 2, 2))
    assert method.last.matched == (0 if shift else method.last.drafted)


@pytest.mark.parametrize("name", NAMES)
def test_sliding_windows(make_decoder, prompts, greedy, name):
    model = make_decoder("gemma3")
    method = method_of(name, model)
    for ids in prompts(5):
        out = model.generate(ids, do_sample=False, custom_generate=method, max_new_tokens=10)
        assert out[0, ids.shape[1] :].tolist() == greedy(model, ids, max_new_tokens=10)


def test_a_memorised_answer_is_guessed_ahead(make_decoder, greedy):
    """Trained on one answer until it is known, prompt tokens save passes."""
    model = make_decoder(eos_token_id=None).requires_grad_(False)
    prompt = [5, 9, 11]
    answer = greedy(model, torch.tensor([prompt]), max_new_tokens=12)
    draft = PromptTokens(PromptTokensConfig(tokens=1), model=model)
    method = Ppd(PpdConfig(draft="given", limit=20), trained=draft)
    counted = []
    for _ in range(2):
        out = model.generate(torch.tensor([prompt]), do_sample=False, custom_generate=method, max_new_tokens=12)
        assert out[0, 3:].tolist() == answer
        counted.append(method.last.matched)
        train(draft, lambda: rows_of(model, [[*prompt, *answer]], [12]), steps=150, rate=0.05)
    assert counted[1] > counted[0]


def test_settings_and_targets_that_do_not_fit_are_refused(make_decoder):
    for settings, message in (({"tokens": 0}, "tokens"), ({"tokens": 5}, "tokens")):
        with pytest.raises(ValueError, match=message):
            PromptTokensConfig(**settings)
    for config, message in ((lambda: PpdConfig(draft=" "), "draft"), (lambda: PpdConfig(draft="x", limit=2), "limit"),
                            (lambda: HiddenTransferConfig(draft="x", nodes=0), "nodes"),
                            (lambda: TransferConfig(layer=0), "layer")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            config()
    with pytest.raises(ValueError, match="the model has 2"):
        Transfer(TransferConfig(layer=2), model=make_decoder())
    small, ids = make_decoder(hidden_size=16), torch.tensor([[5]])
    for name in NAMES:
        with pytest.raises(ValueError, match="32 wide and the model 16"):
            small.generate(ids, custom_generate=method_of(name, make_decoder()), max_new_tokens=3)
    with pytest.raises(ValueError, match="at least 5 rows"):
        make_decoder().generate(ids, custom_generate=method_of("ppd", make_decoder(), limit=4), max_new_tokens=3)
    assert "typical" in Ppd(PpdConfig(draft="x", rule="typical")).other_law
    assert Ppd(PpdConfig(draft="x")).other_law == ""
