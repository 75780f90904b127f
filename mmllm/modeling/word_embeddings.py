"""What an LLM has for a text among its own words: the mean embedding of the text's tokens.

W texts, D LLM width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmllm.errors import ConfigError


@torch.no_grad()
def mean_embeddings(embed: Callable[[Tensor], Tensor], tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """float32, W D: the mean embedding of the tokens of each text, as it stands in the middle of a sentence.

    Args:
        embed: the LLM's table of token embeddings, ids to embeddings.
        tokenizer: the LLM's.
        texts: such as names of things.

    Raises:
        ConfigError: if the LLM has no token for a text.
    """
    rows = []
    written = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, written, strict=True):
        if all(number == tokenizer.unk_token_id for number in ids):
            raise ConfigError(f"the LLM has no word for {text!r}: it must be a pretrained one with open words")
        rows.append(embed(torch.tensor(ids)).float().mean(0))
    return torch.stack(rows)
