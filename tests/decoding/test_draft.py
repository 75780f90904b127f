"""Drafts: trees in topological order, and what is refused."""

import pytest
import torch

from mmllm.decoding.draft import Draft
from mmllm.decoding.masks import ancestry, tree_mask


def tree(parents, **fields):
    return Draft(tokens=torch.arange(len(parents)), parents=torch.tensor(parents), **fields)


def test_paths_depths_and_children():
    draft = tree([-1, 0, 0, 1, 3], is_token=torch.tensor([True, True, True, True, False]))
    assert draft.depth == [0, 1, 1, 2, 3]
    assert draft.path_to(3) == [0, 1, 3]
    assert draft.children == [[1, 2], [3], [], [], []]


@pytest.mark.parametrize("parents", [[0], [-1, 2, 1], [-1, 1], [-1, -1], []])
def test_parents_that_are_not_topological_are_refused(parents):
    with pytest.raises(ValueError, match=r"topological|N >= 1"):
        tree(parents)


@pytest.mark.parametrize("name", ["proposal", "embeddings", "is_token"])
def test_a_row_is_needed_for_each_node(name):
    with pytest.raises(ValueError, match=f"{name} of a draft"):
        tree([-1, 0], **{name: torch.zeros(3, 4)})


def test_a_law_of_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        tree([-1, 0], proposal=torch.full((2, 4), float("nan")))


@pytest.mark.parametrize(("token", "why"), [(-1, "vocabulary"), (9, "vocabulary"), (4, "visual")])
def test_ids_that_are_no_words_are_refused(token, why):
    draft = Draft(tokens=torch.tensor([1, token]), parents=torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=why):
        draft.refuse_ids(9, [4])


def test_nodes_that_are_no_tokens_may_have_any_id():
    draft = Draft(tokens=torch.tensor([1, 9]), parents=torch.tensor([-1, 0]), is_token=torch.tensor([True, False]))
    draft.refuse_ids(9, [])


def test_a_node_sees_what_is_attended_its_ancestors_and_itself():
    visible, depth = ancestry((-1, 0, 0, 1))
    mask = tree_mask(torch.tensor([False, True]), visible, depth, torch.float32)
    lowest = torch.finfo(torch.float32).min
    seen = [[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1]]
    assert mask.shape == (1, 1, 4, 6)
    assert torch.equal(mask[0, 0] == 0, torch.tensor(seen, dtype=torch.bool))
    assert set(mask.unique().tolist()) == {0.0, lowest}


def test_a_window_counts_positions_not_nodes():
    visible, depth = ancestry((-1, 0, 0, 1))
    mask = tree_mask(torch.ones(3, dtype=torch.bool), visible, depth, torch.float32, window=2)
    assert (mask[0, 0] == 0).int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1, 0],
                                                [0, 0, 0, 0, 1, 0, 1]]  # fmt: skip
