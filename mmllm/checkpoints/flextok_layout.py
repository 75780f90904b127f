"""Where the configuration and the tensors of a published FlexTok are, and the way from their names to ours."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.checkpoints.diffusers_vae import current_name
from mmllm.checkpoints.flextok_modules import KNOWN
from mmllm.checkpoints.names import Names, to_ours, to_theirs
from mmllm.checkpoints.weights import header
from mmllm.errors import CheckpointError
from mmllm.hub.sources import local_folder, read_json
from mmllm.modeling.tower import check_fit

LONGEST = 10_000
"""Most characters of a section of the configuration in the metadata, as in the original."""
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_POSITIONS = ("positions", "decoder.positions")
"""Our names of the table of registers' positions; ours (T C) is theirs (1 1 C T)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the tensors of a published file."""

    names: Names
    """Beginnings of our tensors' names -> of theirs."""
    left_out: tuple[str, ...] = ()
    """Beginnings of their names of tensors that are not used."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    """Our tensors that the file has not."""

    def check(self, module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
        """Compares the tensors of a file with those of our module, under their names.

        Raises:
            CheckpointError: listing tensors that are missing, unexpected, of another shape or no floating point
                numbers.
        """
        own = {name: tensor for name, tensor in module.state_dict().items() if name not in self.constants}
        own = {name: tensor.T[None, None] if name in _POSITIONS else tensor for name, tensor in own.items()}
        given = self._used(tensors)
        check_fit(given, to_theirs(own, self.names), what=what)
        if wrong := [name for name, tensor in given.items() if tensor.dtype not in _FLOATS]:
            raise CheckpointError(f"{what}: tensors must be floating point numbers: {', '.join(wrong[:3])}")

    def ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a file under our names, with the constants."""
        renamed = to_ours(self._used(tensors), self.names)
        ours = {name: tensor[0, 0].T if name in _POSITIONS else tensor for name, tensor in renamed.items()}
        return {**ours, **self.constants}

    def _used(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {current_name(name): tensor for name, tensor in tensors.items() if not name.startswith(self.left_out)}


def weights_file(source: str | Path) -> Path:
    """The file with the tensors: `source` itself, or `model.safetensors` in a folder or of a hub id.

    Raises:
        CheckpointError: if there is no such folder or hub id.
    """
    path = Path(source)
    if path.is_file():
        return path
    # a folder whose configuration stands in the metadata alone has no config.json
    return (path if path.is_dir() else local_folder(source)) / "model.safetensors"


def is_published(file: Path) -> bool:
    """Whether a weights file, with a `config.json` beside it or not, is a FlexTok in the published layout."""
    beside = file.parent / "config.json"
    if beside.is_file():
        return _is_config(read_json(beside))
    return file.is_file() and file.suffix == ".safetensors" and _is_config(_metadata(file))


def published_config(file: Path) -> dict[str, Any]:
    """The configuration beside a weights file, or in its metadata.

    Raises:
        CheckpointError: if there is none.
    """
    beside = file.parent / "config.json"
    config = read_json(beside) if beside.is_file() else {}
    if not _is_config(config):
        config = _metadata(file)
    if not _is_config(config):
        raise CheckpointError(f"{file}: neither config.json nor its metadata describes a published FlexTok")
    return config


def _is_config(config: Mapping[str, Any]) -> bool:
    return any(
        isinstance(config.get(half), Mapping) and "module_dict" in config[half] for half in ("encoder", "decoder")
    )


def _metadata(file: Path) -> dict[str, Any]:
    """The sections of a configuration in the metadata. They are written as Python writes its plain values.

    Raises:
        CheckpointError: if the file cannot be read, or a section is too long or is no plain value.
    """
    from safetensors import SafetensorError, safe_open

    header(file)
    try:
        with safe_open(file, framework="pt") as opened:
            written = opened.metadata() or {}
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{file}: cannot be read: {problem!s:.200}") from None
    config: dict[str, Any] = {}
    for name in KNOWN:
        text = written.get(name, "None")
        if len(text) > LONGEST:
            raise CheckpointError(f"{file}: {name} in the metadata has {len(text)} characters; at most {LONGEST}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise CheckpointError(f"{file}: {name} in the metadata is no plain value of Python: {text:.60}") from None
        if value is not None:
            config[name] = value
    return config
