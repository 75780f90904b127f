"""Weights on disk: first names and shapes, so that wrong files are refused early; then the tensors themselves."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.errors import CheckpointError
from mmllm.hub.sources import read_json

log = logging.getLogger(__name__)

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LARGEST = 1 << 62
_LONGEST_HEADER = 100_000_000
PICKLED = (".bin", ".pth", ".pt")
"""How names of pickles end."""
_PICKLES = tuple(f"*{suffix}" for suffix in PICKLED)


def header(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file on the meta device: names, shapes and types, no numbers.

    Raises:
        CheckpointError: if the file is missing, no safetensors file, or not as long as its header says (half-copied).
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(f"{file}: this is no safetensors file, or only the start of one ({size} bytes)")
        try:
            entries: dict[str, Any] = json.loads(stream.read(length))
            entries.pop("__metadata__", None)
            end = 8 + length + _check_offsets(entries)
            tensors = {
                name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
                for name, entry in entries.items()
            }
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as problem:
            reason = "it is nested too deeply" if isinstance(problem, RecursionError) else f"{problem!s:.200}"
            raise CheckpointError(f"{file}: the header of this safetensors file cannot be read: {reason}") from None
    if size != end:
        reason = "half-copied: " if size < end else ""
        raise CheckpointError(f"{file}: {reason}its header asks for {end} bytes, the file has {size}")
    return tensors


def _check_offsets(entries: Mapping[str, Any]) -> int:
    """Checks that each tensor has the bytes that its shape needs, and that no two tensors share some.

    Returns:
        The number of bytes of all tensors.

    Raises:
        ValueError: naming the first tensor that is wrong.
    """
    places = []
    for name, entry in entries.items():
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        if not all(isinstance(number, int) and 0 <= number < _LARGEST for number in numbers):
            raise ValueError(f"{name[:100]!r} has a shape or offsets that are no sizes: {numbers!s:.80}")
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name[:100]!r} has the unknown type {entry['dtype']!r:.40}")
        size = math.prod(shape) * _DTYPES[entry["dtype"]].itemsize
        if end - start != size:
            raise ValueError(f"{name[:100]!r} has {end - start} bytes, but its shape needs {_in_digits(size)}")
        places.append((start, end, name))
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise ValueError(f"{name[:100]!r} {'overlaps' if start < reached else 'leaves a gap after'} another tensor")
        reached = end
    return reached


def _in_digits(number: int) -> str:
    return str(number) if number < _LARGEST else "more than 2^62"


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those that its index lists, or all.

    Raises:
        CheckpointError: if there is none, or a file of the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            listed = sorted(set(read_json(index)["weight_map"].values()))
        except (LookupError, TypeError, AttributeError) as problem:
            raise CheckpointError(f"{index}: this index cannot be read: {problem!s:.200}") from None
        if wrong := [name for name in listed if not isinstance(name, str)]:
            raise CheckpointError(f"{index}: weight_map must name files, not {wrong[0]!r:.80}")
        if outside := [name for name in listed if os.path.basename(name) != name]:
            raise CheckpointError(f"{index}: lists a file outside of its folder: {outside[0]}")
        if missing := [name for name in listed if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder}: missing {', '.join(missing[:3])} ({len(missing)} of {len(listed)} files)")
        return [folder / name for name in listed]
    single = folder / "model.safetensors"
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
        if pickles:
            raise CheckpointError(
                f"{folder}: its weights are pickles ({', '.join(pickles[:3])}), and a pickle can run code; "
                "allow_pickle=True reads only their tensors"
            )
        raise CheckpointError(f"{folder}: there are no weights in this folder (*.safetensors)")
    return files


class Weights:
    """The tensors of a model folder: `meta` without numbers, `read` with them.

    Args:
        folder: a model folder.
        allow_pickle: read `.bin` and `.pth` files where there is no safetensors file; tensors only, no code.

    Raises:
        CheckpointError: if a file is missing, cut off or no weights file, or is a pickle and pickles are not allowed.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._pickled: dict[str, Tensor] | None = None
        self.files: list[Path] = []
        try:
            self.files = files_of(folder)
        except CheckpointError:
            pickles = [file for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
            if not (allow_pickle and pickles):
                raise
            self._pickled = _pickled(pickles)
        headers = [header(file) for file in self.files]
        self.meta: dict[str, Tensor] = {name: tensor for entries in headers for name, tensor in entries.items()}
        if self._pickled is not None:
            self.meta = {name: tensor.to("meta") for name, tensor in self._pickled.items()}

    def read(self) -> dict[str, Tensor]:
        """All tensors, on the CPU. Safetensors files are mapped into memory; a tensor is read when it is used."""
        if self._pickled is not None:
            return self._pickled
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        state: dict[str, Tensor] = {}
        for file in self.files:
            try:
                state |= load_file(file)
            except (SafetensorError, OSError) as problem:
                raise CheckpointError(f"{file}: cannot be read: {problem!s:.200}") from None
        return state


def read_pickle(file: Path) -> Any:
    """The content of a pickle that has tensors and plain values only. No code of it is run.

    Raises:
        CheckpointError: if it holds anything else, or is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise CheckpointError(f"{file}: this file holds more than tensors, or is damaged: {problem!s:.200}") from None


def _pickled(files: list[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        state |= state_dict(file)
    return state


def state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle that has nothing else. No code of it is run.

    Raises:
        CheckpointError: if there is no such file, or it holds anything else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file")
    content = read_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: this is no state dict (names and tensors)")
    return content


def bad_numbers(model: nn.Module) -> list[str]:
    """Names of the weights that are not finite everywhere."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    # a sum in float64 is not finite if one of the numbers is not, and does not overflow otherwise
    return [
        name
        for name, weight in weights.items()
        if not weight.is_meta and not torch.isfinite(weight.detach().sum(dtype=torch.float64))
    ]


def tell_bad_numbers(model: nn.Module, source: str | Path) -> None:
    """Warns of weights that are not finite: the answers of such a model mean nothing."""
    if names := bad_numbers(model):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.warning("%s: weights are not finite: %s%s; answers mean nothing", source, ", ".join(names[:3]), more)
