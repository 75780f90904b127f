"""Greedy answers in which the best time token stands for all of them."""

import pytest
import torch
from nearness import assert_near
from transformers.generation.logits_process import LogitsProcessorList

from mmllm.errors import ConfigError
from mmllm.modeling.time_choice import TimeTokensTogether


def test_the_best_time_token_gets_what_all_have():
    torch.manual_seed(0)
    scores, ids = torch.randn(3, 12), [5, 6, 7, 8]
    together = TimeTokensTogether(ids)(torch.zeros(3, 1, dtype=torch.long), scores)
    weights = scores.exp()
    for row in range(3):
        best = max(ids, key=lambda token: float(scores[row, token]))
        assert_near(together[row, best].exp(), weights[row, ids].sum())
        assert together[row, ids].argsort().tolist() == scores[row, ids].argsort().tolist()
    others = [token for token in range(12) if token not in ids]
    assert torch.equal(together[:, others], scores[:, others])


def test_another_word_wins_if_it_is_likelier_than_all_time_tokens():
    chances = torch.tensor([[0.35, 0.05, 0.2, 0.25, 0.15], [0.65, 0.05, 0.1, 0.1, 0.1]])
    together = TimeTokensTogether([2, 3, 4])(torch.zeros(2, 1, dtype=torch.long), chances.log())
    assert together.argmax(-1).tolist() == [3, 0]


def test_time_tokens_that_are_barred_stay_so():
    scores = torch.tensor([[0.5, 1.0, -torch.inf, -torch.inf], [0.5, 1.0, -torch.inf, 2.0]])
    assert torch.equal(TimeTokensTogether([2, 3])(torch.zeros(2, 1, dtype=torch.long), scores), scores)


@pytest.fixture
def torn(make_model):
    """A model whose first word is a time token for certain, but whose best single token is another."""
    model = make_model(path="plain", num_time_tokens=4, time_token_ids=[20, 21, 22, 23])
    model.generation_config.eos_token_id = None
    logits = torch.full((model.config.text_config.vocab_size,), -9.0)
    logits[[7, 20, 21, 22, 23]] = torch.tensor([0.35, 0.05, 0.2, 0.25, 0.15]).log()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
    head.register_forward_hook(lambda *_: logits.expand(*_[2].shape[:-1], -1))
    return model


@pytest.mark.parametrize(
    ("choice", "options", "expected"),
    [
        ("each", {}, 7),
        ("together", {}, 22),
        ("together", {"num_beams": 2}, 7),
        ("together", {"suppress_tokens": [20, 21, 22, 23]}, 7),
        ("together", {"logits_processor": LogitsProcessorList([])}, 22),
    ],
)
def test_generate_does_as_the_model_says(torn, choice, options, expected):
    torn.config.time_choice = choice
    ids = torch.tensor([[1, 2, 3]])
    out = torn.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, **options)
    assert out[0, 3:].tolist() == [expected]


def test_the_choice_is_saved_with_the_model(torn, tmp_path):
    torn.config.time_choice = "together"
    torn.config.save_pretrained(tmp_path)
    assert type(torn.config).from_pretrained(tmp_path).time_choice == "together"
    with pytest.raises(ConfigError, match="time_choice = 'all': must be each or together"):
        type(torn.config)(time_choice="all")
