"""Published weights of audio encoders: one file, whose settings have to describe the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints.weights import header, read_pickle
from mmllm.encoders.audio.beats import BeatsEncoder, load_beats
from mmllm.errors import CheckpointError, ConfigError

LOADERS: dict[type, Callable[[Any, Mapping[str, Tensor], Mapping[str, Any] | None], None]] = {BeatsEncoder: load_beats}
"""Audio encoder -> function that loads tensors by their published names and checks the settings beside them."""


def load_audio_encoder(encoder: Any, source: str | Path) -> None:
    """Loads published weights into an audio encoder, strictly.

    Args:
        encoder: one that `LOADERS` names, or one with its own `load_pretrained`.
        source: a file, such as `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt` with the entries `cfg` and `model`, of
            which only tensors and plain values are read; or a safetensors file with the tensors alone.

    Raises:
        CheckpointError: if there is no such file, or it does not fit the encoder.
        ConfigError: if the encoder has no published weights.
    """
    if encoder.load_pretrained is not None:
        encoder.load_pretrained(source)
        return
    if type(encoder) not in LOADERS:
        raise ConfigError(f"audio encoder {encoder.registered_name!r} has no published weights to load from {source}")
    state, settings = _read(Path(source))
    LOADERS[type(encoder)](encoder, state, settings)


def _read(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """The tensors of a file, and the settings beside them."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        header(file)
        return load_file(file), None
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file")
    content = read_pickle(file)
    state, settings = (content.get("model"), content.get("cfg")) if isinstance(content, dict) else (None, None)
    if not (isinstance(state, dict) and isinstance(settings, dict)) or not _are_tensors(state.values()):
        raise CheckpointError(f"{file}: this is no published audio encoder: it needs 'cfg' and 'model'")
    return state, settings


def _are_tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values)
