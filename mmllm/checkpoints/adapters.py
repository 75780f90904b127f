"""Low-rank adapters (peft) on the LLM: to train, to save beside the model they belong to, and to load again.

Parts of ours (reducers, visual tokenizer, path, ...) are small: those that are trained are trained and saved whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from mmllm.errors import CheckpointError, ConfigError
from mmllm.interfaces import TokenReducer
from mmllm.model import MmllmForConditionalGeneration

CONFIG = "adapter_config.json"
LINEAR = r"language_model\..*\.(q|k|v|o|gate|up|down)_proj"
"""The LLM's linear layers."""
ADAPTER = "default"
"""What peft calls a model's only adapters."""


def with_adapters(model: MmllmForConditionalGeneration, rank: int) -> Any:
    """The model with low-rank adapters on the LLM's linear layers; what else is not frozen is trained as it is.

    The result is peft's; `merge_and_unload()` gives the model again, with what was learned in its weights.

    Raises:
        ConfigError: if a reducer that is trained keeps weights where peft cannot save them.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=LINEAR,
        modules_to_save=list(trained_whole(model)),
        trainable_token_indices=model.config.time_token_ids,
    )
    return _adapted(model, config)


def trained_whole(model: nn.Module) -> Iterator[str]:
    """Names of the modules beside the LLM that have weights to be trained: the parts, or what reducers are made of.

    Raises:
        ConfigError: if a reducer has such weights of its own, not in a module of it.
    """
    for name, child in model.named_children():
        if name != "language_model":
            yield from _trained_below(name, child)


def _trained_below(name: str, module: nn.Module) -> Iterator[str]:
    if not any(weight.requires_grad for weight in module.parameters()):
        return
    # peft puts a wrapper in a module's place; a reducer is told by its class, so it stays and what is in it is wrapped
    if not isinstance(module, nn.ModuleList | nn.ModuleDict | TokenReducer):
        yield name
        return
    if any(weight.requires_grad for weight in module.parameters(recurse=False)):
        raise ConfigError(f"{name}: {type(module).__name__} has to keep its weights in a module to be trained here")
    for key, child in module.named_children():
        yield from _trained_below(f"{name}.{key}", child)


def _adapted(model: nn.Module, config: Any) -> Any:
    """peft's model, in which the modules that are trained whole are the model's own.

    peft would train a copy of each, and of every module whose name ends alike. Here the copy is what stays as it was.
    """
    from peft import get_peft_model
    from peft.utils import ModulesToSaveWrapper

    names, config.modules_to_save = config.modules_to_save or [], None
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    adapted = get_peft_model(model, config)
    config.modules_to_save = names  # so that others can load what is saved
    for name in names:
        parent, _, key = name.rpartition(".")
        own = model.get_submodule(name)
        wrapper = ModulesToSaveWrapper(own, ADAPTER)
        wrapper.set_adapter(ADAPTER)
        wrapper.modules_to_save[ADAPTER], wrapper.original_module = own, wrapper.modules_to_save[ADAPTER]
        wrapper.original_module.requires_grad_(False)
        for weight in own.parameters():
            weight.requires_grad_(id(weight) in trained)  # a part may keep some of its weights frozen
        setattr(model.get_submodule(parent), key, wrapper)
    return adapted


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
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = _adapted(model, config)
        adapted.load_adapter(str(folder), ADAPTER, torch_device=str(model.device))
        return adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as problem:
        raise CheckpointError(f"{folder}: these adapters do not fit their model: {problem}") from None
