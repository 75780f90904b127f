"""Image tokenizers in folders: `config.json` with the part's settings, `model.safetensors` with its weights.

A published FlexTok is read, too, from a folder or from the hub.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmllm import registry
from mmllm.checkpoints.flextok import load_flextok
from mmllm.checkpoints.flextok_layout import is_published, weights_file
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


def load_autoencoder(source: str | Path) -> Autoencoder:
    """An image tokenizer, in evaluation mode.

    Args:
        source: the folder of a trained tokenizer; or a folder, hub id, preset or safetensors file of a published one.

    Raises:
        CheckpointError: if there is no tokenizer, or the weights do not fit its settings.
    """
    file = weights_file(source)
    alone = Path(source).is_file() and not (file.parent / "config.json").exists()
    if alone or is_published(file):
        return load_flextok(file)
    folder = file.parent
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
