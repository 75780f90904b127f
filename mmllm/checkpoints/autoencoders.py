"""Trained image tokenizers in folders: `config.json` with the part's settings, `model.safetensors` with its weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmllm import registry
from mmllm.checkpoints.weights import header
from mmllm.errors import CheckpointError, ConfigError, InputError
from mmllm.interfaces import Autoencoder
from mmllm.modeling.tower import load_strictly
from mmllm.runtime.files import new_folder, read_json


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Saves a tokenizer. The folder gets its final name at the end, so `folder` is never incomplete.

    Raises:
        InputError, MmllmError: if it cannot be written; see `mmllm.runtime.files`.
    """
    weights = {name: value.contiguous().cpu() for name, value in autoencoder.state_dict().items()}
    settings = registry.describe("autoencoder", autoencoder.config)
    with new_folder(folder) as partial:
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps({"autoencoder": settings}, indent=2) + "\n", encoding="utf-8")


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The tokenizer of a folder, in evaluation mode.

    Raises:
        CheckpointError: if the folder has no tokenizer, or the weights do not fit its settings.
    """
    folder = Path(folder)
    try:
        settings = read_json(folder / "config.json", "train the tokenizer again with `mmllm train-tokenizer`")
        if "autoencoder" not in settings:
            raise CheckpointError(f"{folder}: config.json describes no image tokenizer")
        header(folder / "model.safetensors")
        autoencoder: Autoencoder = registry.build("autoencoder", settings["autoencoder"])
        weights = load_file(folder / "model.safetensors")
    except (InputError, ConfigError, SafetensorError) as problem:
        raise CheckpointError(f"{folder}: no image tokenizer can be read: {problem}") from None
    load_strictly(autoencoder, weights, what=f"the image tokenizer of {folder}")
    return autoencoder.eval()
