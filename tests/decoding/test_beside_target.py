"""Methods with a trained draft beside the target: greedy ids whatever the draft's weights are, laws, and refusals."""

import json

import pytest
import torch
from enumeration import ExactText, distance, joint_law, law_of
from greedy_checks import check_embeddings, check_greedy, through
from transformers import DynamicCache

from mmllm import registry
from mmllm.decoding.acceptance import point
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.draft import Draft
from mmllm.decoding.draft_files import save_draft
from mmllm.llm.cache import CACHE

NAMES = ("flash", "longspec")
FAMILIES = ("llama", "qwen2", "gemma")
V = 5
TARGET = torch.randn(V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.5


def untrained(name, model, **settings):
    """The method with random weights."""
    torch.manual_seed(11)
    draft = registry.build("draft", {"name": name, **settings}, model=model)
    return registry.build("decoding", f"{name}:draft=given", trained=draft)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_greedy_decoding(make_decoder, prompts, greedy, check_counts, name, family, attention):
    model = make_decoder(family, attention)
    method = untrained(name, model)
    check_greedy(model, method, prompts(34), greedy, check_counts)  # 204 prompts with all families and attentions


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_with_sliding_windows(make_decoder, prompts, greedy, name, attention):
    model = make_decoder("gemma3", attention)
    method = untrained(name, model)
    for ids in prompts(6):
        assert through(model, method, ids, max_new_tokens=12) == greedy(model, ids, max_new_tokens=12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_embeddings_and_left_padding(make_decoder, prompts, name, family):
    model = make_decoder(family)
    method = untrained(name, model)
    check_embeddings(model, method, prompts(6))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_draft(make_decoder, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11, 4]])
    method, padded = untrained(name, model), torch.tensor([[0, 0, 0, 5, 9, 11, 4]])
    through(model, method, ids, max_new_tokens=10)
    plain = method.last
    mask = (padded != 0).long()
    out = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=10, custom_generate=method)
    assert out[0, 7:].tolist() == through(model, method, ids, max_new_tokens=10)
    assert (method.last.rounds, method.last.matched) == (plain.rounds, plain.matched)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_visual_tokens_in_the_prompt(make_model, prompts, visual_prompt, name, family):
    model = make_model(family)
    method = untrained(name, model)
    for ids in prompts(4, vocabulary=100):
        given = {**visual_prompt(6, ids), "max_new_tokens": 10, "do_sample": False}
        assert torch.equal(model.generate(**given, custom_generate=method), model.generate(**given))


@pytest.mark.parametrize("name", NAMES)
def test_sampled_ids_are_those_of_plain_sampling_with_the_same_seed(make_decoder, prompts, name):
    model = make_decoder()
    method = untrained(name, model)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.95, "max_new_tokens": 10}
    for seed, ids in enumerate(prompts(8)):
        torch.manual_seed(seed)
        expected = model.generate(ids, **options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)


class Answering:
    """Guesses an answer that is given: right with shift 0, else wrong at every token. It replaces `propose`."""

    def __init__(self, method, answer, shift, depth=3):
        start = method.start

        def started(request):
            source = start(request)
            propose = source.propose

            def proposed(root, room):
                propose(root, room)  # the draft goes on as in any text
                done = request.text.count
                words = [(word + shift) % 120 for word in answer[done : done + min(depth, room)]]
                return Draft.chain([root, *words])

            source.propose = proposed
            return source

        method.start = started


@pytest.mark.parametrize("name", NAMES)
def test_drafts_that_are_always_wrong_or_always_right(make_decoder, greedy, check_counts, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=13)
    for shift, rounds in ((1, 12), (0, 3)):
        method = untrained(name, model)
        Answering(method, answer, shift)
        assert through(model, method, ids, max_new_tokens=13) == answer
        check_counts(method.last, 13)
        assert method.last.rounds == rounds


@pytest.mark.parametrize("name", NAMES)
def test_an_end_token_or_the_limit_inside_a_right_draft_ends_the_text(make_decoder, greedy, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    answer = greedy(model, ids, max_new_tokens=16)
    for place in range(1, 9):
        method = untrained(name, model)
        Answering(method, answer, 0, depth=7)
        assert through(model, method, ids, max_new_tokens=place) == answer[:place]
        end = answer[place]
        found = through(model, method, ids, max_new_tokens=16, eos_token_id=end)
        assert found == answer[: answer.index(end) + 1]


def test_point_drafts_keep_the_law():
    """All methods here draft fixed sets: every tree of words gives the target's law, by enumeration."""
    trees = [Draft.chain([0, 1, 2]), Draft(tokens=torch.tensor([0, 1, 3, 2]), parents=torch.tensor([-1, 0, 0, 2]))]
    for tree in trees:

        def run(chance, tree=tree):
            text = ExactText(0, 3, chance)
            while not text.ended:
                draft = Draft(tokens=torch.cat([torch.tensor([text.last]), tree.tokens[1:]]), parents=tree.parents)
                draft = draft if max(draft.depth) <= text.room else Draft.chain([text.last])
                point(draft, TARGET[draft.tokens], text)
            return tuple(text.new)

        assert distance(law_of(run), joint_law(TARGET, 0, 3)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_every_proposal_is_a_point_draft_no_deeper_than_its_room(make_decoder, name):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    method, seen = untrained(name, model), []
    accept = method.accept

    def accepted(draft, logits, text):
        seen.append((draft, text.room))
        return accept(draft, logits, text)

    method.accept = accepted
    through(model, method, ids, max_new_tokens=9)
    assert all(draft.proposal is None and max(draft.depth) <= room for draft, room in seen)
    assert seen[-1][1] == 0 or len(seen[-1][0]) > 1


# --- folders and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_draft_is_read_from_its_folder(make_decoder, name, tmp_path):
    model, ids = make_decoder(eos_token_id=None), torch.tensor([[5, 9, 11]])
    method = untrained(name, model)
    save_draft(method.draft_for(model), tmp_path, model)
    read = decoding_of(f"{name}:draft={tmp_path}")
    assert through(model, method, ids, max_new_tokens=12) == through(model, read, ids, max_new_tokens=12)
    assert read.last.emitted_per_round == method.last.emitted_per_round
    assert read.draft_for(model) is read.draft_for(model)
    with pytest.raises(ValueError, match="trained for other weights"):
        through(make_decoder(seed=1), decoding_of(f"{name}:draft={tmp_path}"), ids, max_new_tokens=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_draft_is_refused_and_says_how_to_train_one(make_decoder, name, tmp_path):
    with pytest.raises(ValueError, match="draft"):
        decoding_of(name)
    with pytest.raises(ValueError, match=f"mmllm train-draft {name}"):
        through(make_decoder(), decoding_of(f"{name}:draft={tmp_path}"), torch.tensor([[5]]), max_new_tokens=4)
    (tmp_path / "draft.json").write_text(json.dumps({"draft": {"name": "other"}}))
    with pytest.raises(ValueError, match=f"holds a draft of 'other', not of '{name}'"):
        through(make_decoder(), decoding_of(f"{name}:draft={tmp_path}"), torch.tensor([[5]]), max_new_tokens=4)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_nan_and_a_batch_are_refused(make_decoder, name):
    model = make_decoder()
    method = untrained(name, model)
    with pytest.raises(ValueError, match="one text at a time, not a batch of 2"):
        model.generate(torch.tensor([[5, 9], [4, 7]]), custom_generate=method, max_new_tokens=4)
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        through(model, method, torch.tensor([[5, 9]]), max_new_tokens=4)


def test_a_cache_whose_states_nobody_has_kept_is_refused(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5, 9, 11, 20]])
    cache = model(ids[:, :3], **{CACHE: DynamicCache()})[CACHE]
    with pytest.raises(ValueError, match="hidden states nobody has kept"):
        through(model, untrained("flash", model), ids, max_new_tokens=4, past_key_values=cache)
