"""The mean embedding of a text's tokens, as it stands in the middle of a sentence."""

import pytest
import torch
from nearness import assert_near
from torch import nn

from mmllm.errors import ConfigError
from mmllm.modeling.word_embeddings import mean_embeddings
from mmllm.preprocessing.closed_vocabulary import word_tokenizer


def test_tokens_are_averaged():
    tokenizer = word_tokenizer(["fire", "engine", "kite"])
    table = nn.Embedding(len(tokenizer), 8)
    fire, engine, kite = (tokenizer.convert_tokens_to_ids(word) for word in ("fire", "engine", "kite"))
    got = mean_embeddings(table, tokenizer, ["fire engine", "kite"])
    expected = torch.stack([(table.weight[fire] + table.weight[engine]) / 2, table.weight[kite]])
    assert_near(got, expected.detach())
    assert not got.requires_grad


class Spaced:
    """A tokenizer that tells a word after a space from one at the beginning."""

    unk_token_id = None

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[3] if text.startswith(" ") else [4] for text in texts]}


def test_a_word_is_the_one_after_a_space():
    table = nn.Embedding(5, 4)
    assert_near(mean_embeddings(table, Spaced(), ["kite"])[0], table.weight[3].detach())


def test_a_text_that_the_llm_has_no_word_for_is_refused():
    tokenizer = word_tokenizer(["kite"])
    with pytest.raises(ConfigError, match="the LLM has no word for 'tench'"):
        mean_embeddings(nn.Embedding(len(tokenizer), 4), tokenizer, ["kite", "tench"])
