"""A pretrained LLM: loaded in the least memory, and given to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_NAME

from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError
from mmllm.hub.sources import llm_source
from mmllm.model import MmllmForConditionalGeneration


def load_llm(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A pretrained LLM.

    Args:
        name: what `llm_source` takes.
        dtype: of its weights.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    source = llm_source(name)
    try:
        llm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot load the LLM {source}: {problem}") from None
    return llm if dtype == torch.float32 else _cast(llm, weights_file(name), dtype)


def weights_file(name: str) -> Path:
    """The file with the weights of an LLM (what `llm_source` takes); there is none if they are in several."""
    return Path(llm_source(name)) / SAFE_WEIGHTS_NAME


def stored_weight(file: Path, weight: str) -> Tensor | None:
    """A weight as an LLM's file has it, read through a map of its own; None if there is no such file or weight.

    What is read of a map counts as memory for as long as the map is open, so a map of all weights would grow.
    """
    if not file.is_file():
        return None
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(weight) if weight in stored.keys() else None  # noqa: SIM118 it is no mapping


def with_llm(config: MmllmConfig, language_model: Any) -> MmllmForConditionalGeneration:
    """A model that holds a pretrained LLM, whose table of embeddings gets as many rows as the configuration says.

    As in LITA, new rows of both matrices are drawn with the LLM's own spread, not around the mean of the rows.

    Raises:
        CheckpointError: if it has other sizes.
    """
    language_model.resize_token_embeddings(config.text_config.vocab_size, mean_resizing=False)
    with torch.device("meta"):  # no weights: only their shapes
        described = AutoModelForCausalLM.from_config(config.text_config, trust_remote_code=False)
    shapes = {name: weight.shape for name, weight in described.state_dict().items()}
    given = {name: weight.shape for name, weight in language_model.state_dict().items()}
    if wrong := sorted(name for name in shapes | given if shapes.get(name) != given.get(name)):
        where, name = language_model.config.name_or_path, wrong[0]
        raise CheckpointError(
            f"the LLM {where} is another one than the model's: "
            f"{name} has the shape {given.get(name)}, and the model's {shapes.get(name)}"
        )
    for module in language_model.modules():
        module._is_hf_initialized = True  # transformers would draw its weights anew
    return MmllmForConditionalGeneration(config, language_model=language_model)


def _cast(llm: Any, file: Path, dtype: torch.dtype) -> Any:
    """The LLM with weights of another type, read one by one; without a single file, the LLM is cast as a whole."""
    for name, weight in llm.named_parameters():
        stored = stored_weight(file, name)
        if stored is not None:
            weight.data = stored.to(dtype)
    return llm.to(dtype)
