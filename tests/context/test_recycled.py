"""Recycled Attention: which steps are dense, and what the others see."""

import pytest
import torch
from policy_runs import answer, built, dense, llm, prompt

from mmllm.context.recycled import RecycledConfig, remembered
from mmllm.errors import ConfigError


def test_the_mean_over_a_key_head_decides():
    received = torch.tensor([[[0.5, 0.1, 0.4, 0.0], [0.0, 0.6, 0.3, 0.1]]])
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    assert remembered(received, 1, valid, torch.tensor([2])).tolist() == [[[False, True, True, False]]]
    assert remembered(received, 2, valid, torch.tensor([1])).tolist() == [
        [[True, False, False, False], [False, True, False, False]]
    ]


def test_every_so_many_steps_all_keys_are_read():
    """A watching stage beside the policy counts the keys of each step."""
    current = prompt(built("recycled:stride=3,top_k=6"), rows=1)
    seen = []
    note = current.counts.note_pass
    current.counts.note_pass = lambda layer, new, keys, there: (
        seen.append(int(keys.amax())),
        note(layer, new, keys, there),
    )
    answer(llm(), current, steps=7)
    length = current.visual.shape[1]
    first_layer = seen[::5]
    # the prompt, then two steps between dense ones: six remembered keys and all newer ones
    assert first_layer == [length, 7, 8, length + 3, 7, 8, length + 6, 7]


def test_a_query_that_turns_away_reads_all_keys():
    _, logits = dense()
    for bound, same in ((1.0, True), (-1.0, False)):
        _, ours, _ = answer(llm(), prompt(built(f"recycled:stride=100,top_k=4,bound={bound}")))
        assert torch.allclose(ours, logits, atol=1e-5) == same


@pytest.mark.parametrize(
    ("field", "value"),
    [("stride", 0), ("top_k", 0), ("top_k", 1.5), ("top_k", -0.5), ("bound", 2.0), ("bound", float("nan"))],
)
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=f"RecycledConfig.{field} = {value}"):
        RecycledConfig(**{field: value})
