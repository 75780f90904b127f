"""Trained image tokenizers in folders: `config.json` with the part's settings, `model.safetensors` with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from mmllm import registry
from mmllm.errors import CheckpointError, ConfigError
from mmllm.interfaces import Autoencoder
from mmllm.modeling.tower import load_strictly


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Saves a tokenizer. The folder gets its final name at the end, so `folder` is never incomplete."""
    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous().cpu() for name, value in autoencoder.state_dict().items()}
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    settings = registry.describe("autoencoder", autoencoder.config)
    (partial / "config.json").write_text(json.dumps({"autoencoder": settings}, indent=2) + "\n")
    partial.rename(folder)


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The tokenizer of a folder, in evaluation mode.

    Raises:
        CheckpointError: if the folder has no tokenizer, or the weights do not fit its settings.
    """
    folder = Path(folder)
    try:
        settings: Any = json.loads((folder / "config.json").read_text())
        if not isinstance(settings, dict) or "autoencoder" not in settings:
            raise CheckpointError(f"{folder}: config.json describes no image tokenizer")
        autoencoder: Autoencoder = registry.build("autoencoder", settings["autoencoder"])
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError as problem:
        raise CheckpointError(
            f"{folder}: {Path(str(problem.filename)).name} is missing; a tokenizer's folder is made "
            "by `mmllm train-tokenizer`"
        ) from None
    except (OSError, ValueError, ConfigError) as problem:
        raise CheckpointError(f"{folder}: {problem}") from None
    load_strictly(autoencoder, weights, what=f"the image tokenizer of {folder}")
    return autoencoder.eval()
