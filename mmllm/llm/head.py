"""The LM head of a decoder LLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def lm_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits (... V) of last hidden states (... D), as the LLM's own forward would scale them.

    Args:
        model: a decoder LLM, a video LLM of transformers, or one of our models.
        hidden: what the head reads.
    """
    logits: Tensor = model.get_output_embeddings()(hidden)
    text = model.config.get_text_config()
    if (scale := getattr(text, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(text, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
