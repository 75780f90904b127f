"""Low-rank adapters (peft) on the LLM: to train, to save beside the model they belong to, and to load again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmllm.errors import CheckpointError
from mmllm.model import MmllmForConditionalGeneration

CONFIG = "adapter_config.json"
LINEAR = r"language_model\..*\.(q|k|v|o|gate|up|down)_proj"
"""The LLM's linear layers."""


def with_adapters(model: MmllmForConditionalGeneration, rank: int) -> Any:
    """The model with low-rank adapters on the LLM's linear layers; projector and time tokens are trained as they are.

    The result is peft's; `merge_and_unload()` gives a plain model again.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=LINEAR,
        modules_to_save=["visual_tokenizer"] + (["grounding"] if model.grounding is not None else []),
        trainable_token_indices=model.config.time_token_ids,
    )
    return get_peft_model(model, config)


def base_of(folder: str | Path) -> str | None:
    """The model that a folder's adapters belong to; None if it is no folder of adapters.

    Raises:
        CheckpointError: if the folder does not say.
    """
    record = Path(folder) / CONFIG
    if not record.is_file():
        return None
    try:
        base = json.loads(record.read_text()).get("base_model_name_or_path")
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{record}: cannot be read: {problem}") from None
    if not base:
        raise CheckpointError(f"{record}: it does not say which model these adapters belong to")
    return str(base)


def merged_with(model: MmllmForConditionalGeneration, folder: str | Path) -> MmllmForConditionalGeneration:
    """A model with a folder's adapters folded into its weights.

    Raises:
        CheckpointError: if the adapters do not fit the model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise CheckpointError(f"{folder}: these adapters do not fit their model: {problem}") from None
