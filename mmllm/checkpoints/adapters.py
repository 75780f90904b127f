"""Low-rank adapters (peft) on the LLM: train them, save them, and fold them into the model they belong to.

Other parts (reducers, visual tokenizer, path, ...) are small. They get no adapters: they are trained and saved whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmllm.errors import CheckpointError, ConfigError, is_out_of_memory, require_extra
from mmllm.hub.sources import read_json
from mmllm.interfaces import LlmStage, TokenReducer
from mmllm.model import MmllmForConditionalGeneration

CONFIG = "adapter_config.json"
PARTS = "pretrained.json"
"""File beside adapters whose model is not in one place; see `mmllm.checkpoints.parts`."""
LINEAR = r"language_model\..*\.(q|k|v|o|gate|up|down)_proj"
"""The LLM's linear layers."""
ADAPTER = "default"
"""Name that peft gives to the only adapters of a model."""


def with_adapters(model: MmllmForConditionalGeneration, rank: int) -> Any:
    """The model with low-rank adapters on the LLM's linear layers. Other parts that are not frozen are trained whole.

    The result is a model of peft. Its `merge_and_unload()` returns our model with the adapters folded into its weights.

    Raises:
        ConfigError: if a reducer has trained weights that peft cannot save.
    """
    require_extra("train", "training adapters", "peft")
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
    """Names of the modules outside the LLM that have trained weights: parts, or the modules inside a reducer.

    Raises:
        ConfigError: if a reducer holds a trained weight directly, not in a module inside it.
    """
    for name, child in model.named_children():
        if name != "language_model":
            yield from _trained_below(name, child)


def _trained_below(name: str, module: nn.Module) -> Iterator[str]:
    if not any(weight.requires_grad for weight in module.parameters()):
        return
    # peft replaces a module by a wrapper; our code recognises a reducer and a stage of the LLM by its class, so only
    # their insides are wrapped
    if not isinstance(module, nn.ModuleList | nn.ModuleDict | TokenReducer | LlmStage):
        yield name
        return
    if any(weight.requires_grad for weight in module.parameters(recurse=False)):
        raise ConfigError(f"{name}: {type(module).__name__} has to keep its weights in a module to be trained here")
    for key, child in module.named_children():
        yield from _trained_below(f"{name}.{key}", child)


def _adapted(model: nn.Module, config: Any) -> Any:
    """peft's model, in which the modules that are trained whole are the original modules.

    peft itself would train a copy of each, and of every module whose name has the same ending. Here the original is
    trained, and the copy keeps the weights from before.
    """
    from peft import get_peft_model
    from peft.utils import ModulesToSaveWrapper

    names, config.modules_to_save = config.modules_to_save or [], None
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft asks by the older name
        adapted = get_peft_model(model, config)
    config.modules_to_save = names  # saved with the adapters, so that peft alone can load them
    for name in names:
        parent, _, key = name.rpartition(".")
        own = model.get_submodule(name)
        wrapper = ModulesToSaveWrapper(own, ADAPTER)
        wrapper.set_adapter(ADAPTER)
        wrapper.modules_to_save[ADAPTER], wrapper.original_module = own, wrapper.modules_to_save[ADAPTER]
        wrapper.original_module.requires_grad_(False)
        for weight in own.parameters():
            weight.requires_grad_(id(weight) in trained)  # some weights of a part may be frozen
        setattr(model.get_submodule(parent), key, wrapper)
    return adapted


def base_of(folder: str | Path) -> str | None:
    """The model that the adapters of a folder belong to; None if the folder has none, or is a model of several parts.

    Raises:
        CheckpointError: if its configuration names no model, or cannot be read.
    """
    record = Path(folder) / CONFIG
    if not record.is_file() or (Path(folder) / PARTS).is_file():
        return None
    base = read_json(record).get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{record}: base_model_name_or_path must say which model these adapters belong to")
    if (Path(str(base)) / CONFIG).is_file():
        raise CheckpointError(f"{record}: these adapters belong to {base}, which is itself a folder of adapters")
    return str(base)


def merged_with(
    model: MmllmForConditionalGeneration,
    folder: str | Path,
    exact_weight: Callable[[str], Tensor | None] | None = None,
) -> MmllmForConditionalGeneration:
    """The model with the adapters of a folder folded into its weights.

    Args:
        model: what they belong to.
        folder: has them.
        exact_weight: for a model of a half type, its LLM's weights by their names there, before they were rounded. So
            a weight is rounded once, with its adapters in it.

    Raises:
        CheckpointError: if the adapters do not fit the model.
    """
    require_extra("train", f"{folder}: a model with adapters", "peft")
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = _adapted(model, config)
        adapted.load_adapter(str(folder), ADAPTER, torch_device=str(model.device))
        if exact_weight is not None:
            _merge_exactly(model.language_model, exact_weight)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="All adapters are already merged")
            return adapted.merge_and_unload()
    except Exception as problem:  # peft raises errors of many types
        if is_out_of_memory(problem):
            raise
        raise CheckpointError(f"{folder}: these adapters do not fit their model: {problem!s:.600}") from None


def _merge_exactly(llm: nn.Module, exact_weight: Callable[[str], Tensor | None]) -> None:
    """Folds adapters into weights that are not rounded yet, one after another, and rounds them then."""
    from peft.tuners.lora import LoraLayer

    for name, layer in llm.named_modules():
        exact = exact_weight(f"{name}.weight") if isinstance(layer, LoraLayer) else None
        if exact is not None:
            own = layer.get_base_layer().weight
            rounded, own.data = own.dtype, exact.to(own.device)
            layer.merge()
            own.data = own.data.to(rounded)
