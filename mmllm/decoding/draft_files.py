"""The folder of a trained draft: its settings, its weights, and the fingerprint of the weights that it was trained for.

FOLDER/draft.json           name and settings, fingerprint and name of the target
FOLDER/draft.safetensors    weights; a draft that is a whole model has the files of one
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmllm import registry
from mmllm.decoding.trained_draft import TrainedDraft, text_decoder
from mmllm.errors import CheckpointError, ConfigError
from mmllm.runtime.files import read_json, write_json
from mmllm.runtime.fingerprint import fingerprint

KIND = "draft"
"""The registry's kind of trained drafts."""
RECORD = "draft.json"
AGAIN = "train the draft again"


def save_draft(draft: TrainedDraft, folder: Path, model: Any, *, processor: Any = None, name: str = "") -> None:
    """Writes a draft and what it was trained for.

    Args:
        draft: with its weights.
        folder: exists.
        model: the target.
        processor: of the target.
        name: folder or hub id of the target, for messages.
    """
    draft.save(folder, processor)
    settings = registry.describe(KIND, draft.config)
    write_json(folder / RECORD, {"draft": settings, "target": target_print(model), "target_name": name})


def load_draft(name: str, folder: str | Path, model: Any) -> TrainedDraft:
    """The draft in a folder, ready to be used beside its target.

    Args:
        name: the registered name that it must have.
        folder: of the draft.
        model: the target.

    Raises:
        CheckpointError: if there is none, it is damaged, or it was trained for other weights.
        ConfigError: if it is another kind of draft.
    """
    settings, record = recorded(name, Path(folder)), read_json(Path(folder) / RECORD, AGAIN)
    before = torch.random.get_rng_state()
    draft: TrainedDraft = registry.build(KIND, settings, model=model)
    torch.random.set_rng_state(before)  # the weights that it draws are replaced: sampling goes on as without
    if draft.of_one_target and record.get("target") != target_print(model):
        raise CheckpointError(
            f"{folder}: it was trained for other weights (those of {record.get('target_name') or 'another model'}): "
            f"train one for this model: mmllm train-draft {name}"
        )
    try:
        draft.load(Path(folder))
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {problem!s:.300}") from None
    weight = model.get_input_embeddings().weight
    return draft.to(device=weight.device, dtype=weight.dtype).eval().requires_grad_(False)


def recorded(name: str, folder: Path) -> dict[str, Any]:
    """The settings of a draft in a folder.

    Raises:
        CheckpointError: if there is none, or it is damaged.
        ConfigError: if it is another kind of draft than the one of that name.
    """
    file = folder / RECORD
    if not file.is_file():
        raise CheckpointError(f"{folder}: no trained draft is there; train one: mmllm train-draft {name}")
    settings = read_json(file, AGAIN).get("draft")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: it does not say which draft it describes: {AGAIN}")
    if settings.get("name") != name:
        raise ConfigError(f"{folder} holds a draft of {settings.get('name')!r}, not of {name!r}")
    return settings


def target_print(model: Any) -> str:
    """The fingerprint of a target's decoder."""
    return fingerprint(text_decoder(model))
