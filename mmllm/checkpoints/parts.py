"""Models whose pretrained parts are not in their folder: adapters, and the names of an LLM and an encoder.

    folder/pretrained.json             {"language_model": "smollm2-135m", "encoder_weights": "efficientnet-lite0"}
    folder/adapter_model.safetensors   low-rank adapters, time tokens, and all parts that were trained whole
    folder/config.json, ...            configuration and processor of the whole model

So a model that speaks has a few megabytes. Its LLM and its encoder are found by their names when it is loaded.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmllm.checkpoints.adapters import CONFIG, PARTS, merged_with
from mmllm.checkpoints.loading import own_config
from mmllm.checkpoints.pretrained_llm import load_llm, stored_weight, weights_file, with_llm
from mmllm.checkpoints.towers import load_tower
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError
from mmllm.hub.sources import read_json
from mmllm.model import MmllmForConditionalGeneration
from mmllm.runtime import processes
from mmllm.runtime.files import write_json
from mmllm.runtime.precision import HALF

WEIGHTS = "adapter_model.safetensors"
PARTS_NAMED = ("language_model", "encoder_weights")
"""Fields of `ModelConfig` that name pretrained weights."""
_TRAINING_ONLY = "grounding"
"""The part that only a loss of training reads."""


def has_parts_elsewhere(folder: str | Path) -> bool:
    """Whether a folder holds such a model."""
    return (Path(folder) / PARTS).is_file()


def pretrained_parts(folder: str | Path) -> dict[str, str]:
    """`language_model` and `encoder_weights` of a folder: presets, hub ids, folders or files of packages.

    Raises:
        CheckpointError: if the file does not name both.
    """
    file = Path(folder) / PARTS
    parts = read_json(file)
    if set(parts) != set(PARTS_NAMED) or not all(isinstance(name, str) and name for name in parts.values()):
        raise CheckpointError(f"{file}: must name {' and '.join(PARTS_NAMED)}, each as a text; it has {sorted(parts)}")
    return parts


def own_type(folder: str | Path) -> torch.dtype:
    """The type in which such a model computes if no other one is asked for.

    It is the one of its configuration on a GPU, and on a CPU that multiplies matrices in bfloat16; else float32.
    """
    stored = own_config(Path(folder))[0].dtype
    if torch.cuda.is_available():
        return stored if stored in HALF else torch.float32
    return torch.bfloat16 if stored == torch.bfloat16 and processes.multiplies_bfloat16() else torch.float32


def load_assembled(folder: str | Path, dtype: torch.dtype = torch.float32) -> MmllmForConditionalGeneration:
    """The model: its pretrained parts, with the folder's adapters folded into their weights.

    Args:
        folder: has the adapters.
        dtype: of all weights, from the start, so that a half type needs half the memory while it is loaded, too.

    Raises:
        CheckpointError: if a part cannot be had, with what to install, or the adapters do not fit.
    """
    named = pretrained_parts(folder)["language_model"]
    exact = None if dtype == torch.float32 else partial(stored_weight, weights_file(named))
    return merged_with(load_unadapted(folder, dtype), folder, exact)


def load_unadapted(folder: str | Path, dtype: torch.dtype = torch.float32) -> MmllmForConditionalGeneration:
    """The model before its training: with its pretrained parts, and new weights everywhere else.

    Args:
        folder: names the parts.
        dtype: of all weights.

    Raises:
        CheckpointError: if a part cannot be had, with what to install.
    """
    parts = pretrained_parts(folder)
    config, _ = own_config(Path(folder))
    model = with_llm(config, load_llm(parts["language_model"], dtype))
    load_tower(model.encoder, parts["encoder_weights"])
    return model.to(dtype)


def save_adapted(
    adapted: Any, processor: Any, folder: Path, parts: dict[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Saves what was trained, in float16, and the names of what was not.

    Args:
        adapted: a model of peft, from `with_adapters`.
        processor: the model's processor.
        folder: is filled.
        parts: as `pretrained_parts` returns them.
        dtype: in which the model should compute: `own_type` reads it.
    """
    adapted.save_pretrained(folder)
    saved = _read(folder / WEIGHTS)
    trained = {name: value.half() for name, value in saved.items() if f".{_TRAINING_ONLY}." not in name}
    save_file(trained, folder / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / CONFIG).read_text())
    whole = settings.get("modules_to_save") or []
    settings["modules_to_save"] = [name for name in whole if name != _TRAINING_ONLY]
    settings["base_model_name_or_path"] = None  # it has no single base; `PARTS` names its parts
    write_json(folder / CONFIG, settings)
    config = MmllmConfig.from_dict(adapted.get_base_model().config.to_dict())
    config.loss = {**config.loss, "grounding_weight": 0.0}
    config.dtype = dtype
    config.save_pretrained(folder)
    adapted.get_base_model().generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / PARTS, parts)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a card


def _read(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 it is no mapping
