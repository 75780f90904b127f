"""Token Recycling: the originals' trees and matrix, memory between texts, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LogitsProcessorList, StoppingCriteriaList

from mmllm.decoding.acceptance import point
from mmllm.decoding.token_recycling import TEMPLATE, TokenRecycling, TokenRecyclingConfig, smaller_template
from mmllm.decoding.tree import Request
from mmllm.decoding.writing import Written

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "decoding-token-recycling.safetensors")


def request_of(text, vocabulary, forbidden=()):
    return Request(model=None, text=text, input_ids=text.ids, inputs={}, vocabulary=vocabulary, forbidden=forbidden)


def test_the_template_is_the_published_one():
    rows = [tuple(rank for rank in row if rank >= 0) for row in GOLDEN["template"].tolist()]
    assert list(TEMPLATE) == rows
    method = TokenRecycling(TokenRecyclingConfig(tree=80))
    assert method.parents == GOLDEN["buffer.father_index"].tolist()
    assert [len(path) for path in method.template] == GOLDEN["buffer.position_ids"].tolist()[1:]


@pytest.mark.parametrize("count", [1, 2, 13, 40, 79])
def test_smaller_trees_are_reached_through_their_own_nodes(count):
    paths = smaller_template(count)
    assert len(set(paths)) == count
    assert all(path[:-1] in {(), *paths} for path in paths)
    assert set(paths) <= set(TEMPLATE)


def test_a_smaller_tree_has_the_likeliest_paths():
    """Two more levels of first successors are likelier than the second successor, three more are not."""
    assert smaller_template(3) == ((0,), (0, 0), (0, 0, 0))
    assert smaller_template(4) == ((0,), (1,), (0, 0), (0, 0, 0))
    assert smaller_template(len(TEMPLATE)) == TEMPLATE


def paths_of(tokens, parents):
    """The texts that a tree holds."""
    texts = []
    for token, parent in zip(tokens, parents, strict=True):
        texts.append((*texts[parent], token) if parent >= 0 else (token,))
    return set(texts)


def test_trees_matrix_and_ids_of_the_original_loop():
    """Its first round is a tree below the last token of the prompt; it stops once there are 24 new tokens.

    Its trees have equal siblings where a row of the matrix was never written; here these are one node.
    """
    table, method = GOLDEN["bigram_logits"], TokenRecycling(TokenRecyclingConfig(tree=80))
    for run in (0, 1):
        text = Written(GOLDEN["prompt"][None], LogitsProcessorList(), StoppingCriteriaList(), limit=1000)
        source = method.start(request_of(text, len(table)))
        trees, accepted = [], []
        while text.count < 24:
            draft = source.propose(text.last, 100)
            logits = table[draft.tokens]
            before = text.count
            path = point(draft, logits, text)
            source.observe(draft, logits, path)
            trees.append(paths_of(draft.ids, draft.parent_of))
            assert len(trees[-1]) == len(draft)
            accepted.append(text.count - before)
        parents = GOLDEN["buffer.father_index"].tolist()
        assert trees == [paths_of(tokens, parents) for tokens in GOLDEN[f"run{run}.trees"].tolist()]
        assert accepted == GOLDEN[f"run{run}.accepted"].tolist()
        ids = GOLDEN[f"run{run}.ids"].tolist()
        assert text.ids[0, : len(ids)].tolist() == ids
        assert torch.equal(method.matrix, GOLDEN[f"run{run}.matrix"].long())


def test_a_second_run_of_a_text_needs_no_more_rounds(make_decoder, prompts):
    model = make_decoder(eos_token_id=None)
    for ids in prompts(6):
        method, rounds = TokenRecycling(TokenRecyclingConfig()), []
        for _ in range(2):
            model.generate(ids, custom_generate=method, max_new_tokens=16, do_sample=False)
            rounds.append(method.last.rounds)
        assert rounds[1] <= rounds[0]


def test_any_matrix_gives_the_greedy_ids(make_decoder, prompts, greedy, check_counts):
    model = make_decoder()
    for ids in prompts(8):
        method = TokenRecycling(TokenRecyclingConfig(tree=30))
        method.load_state_dict({"matrix": torch.randint(0, 120, (120, 8))})
        expected = greedy(model, ids, max_new_tokens=12)
        out = model.generate(ids, custom_generate=method, max_new_tokens=12, do_sample=False)
        assert out[0, ids.shape[1] :].tolist() == expected
        check_counts(method.last, len(expected))


def test_of_a_token_that_stands_twice_in_a_tree_the_last_node_writes_its_row():
    from mmllm.decoding.draft import Draft

    method = TokenRecycling(TokenRecyclingConfig(tree=1, width=2))
    text = Written(torch.tensor([[0]]), LogitsProcessorList(), StoppingCriteriaList(), limit=9)
    source = method.start(request_of(text, 4))
    draft = Draft(tokens=torch.tensor([1, 2, 1]), parents=torch.tensor([-1, 0, 0]))
    source.observe(draft, torch.tensor([[9.0, 8, 0, 0], [0, 9, 8, 0], [0, 0, 8, 9]]), [0])
    assert method.matrix.tolist() == [[0, 0], [3, 2], [1, 2], [0, 0]]


def test_ids_of_visual_tokens_are_neither_learned_nor_drafted():
    method = TokenRecycling(TokenRecyclingConfig(tree=3, width=3))
    text = Written(torch.tensor([[1]]), LogitsProcessorList(), StoppingCriteriaList(), limit=9)
    source = method.start(request_of(text, 5, forbidden=(0, 4, 99)))
    assert source.propose(1, 5).ids == [1]  # rows that were never written hold id 0
    from mmllm.decoding.draft import Draft

    source.observe(Draft.chain([1]), torch.tensor([[9.0, 1, 2, 3, 8]]), [0])
    assert method.matrix[1].tolist() == [3, 2, 1]


def test_the_state_goes_on_in_another_method(make_decoder):
    model, first, second = make_decoder(), *(TokenRecycling(TokenRecyclingConfig()) for _ in range(2))
    assert first.state_dict() == {}
    model.generate(torch.tensor([[5, 9]]), custom_generate=first, max_new_tokens=9, do_sample=False)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.matrix, first.matrix)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width"),
        ({"tree": 0}, "tree"),
        ({"tree": 81}, "tree"),
        ({"width": 3}, "ranks in a tree of 20"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenRecyclingConfig(**settings)


def test_a_matrix_of_another_vocabulary_is_refused(make_decoder):
    method = TokenRecycling(TokenRecyclingConfig())
    method.load_state_dict({"matrix": torch.zeros(50, 8, dtype=torch.long)})
    with pytest.raises(ValueError, match="50 ids, and the model has 120"):
        make_decoder().generate(torch.tensor([[5]]), custom_generate=method, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"\(V, 8\)"):
        method.load_state_dict({"matrix": torch.zeros(50, 3, dtype=torch.long)})
    text = Written(torch.tensor([[1]]), LogitsProcessorList(), StoppingCriteriaList(), limit=9)
    with pytest.raises(ValueError, match="only 5 ids"):
        TokenRecycling(TokenRecyclingConfig()).start(request_of(text, 5))


def test_the_typical_rule_says_that_it_is_another_law():
    assert TokenRecycling(TokenRecyclingConfig()).other_law == ""
    assert "typical" in TokenRecycling(TokenRecyclingConfig(rule="typical")).other_law
