"""`mmllm convert SRC DST`: a published model into our layout, and back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro
from safetensors import SafetensorError

from mmllm.errors import CheckpointError, InputError
from mmllm.runtime.files import cannot_write, flush_files, make_folder

PUBLISHED_FILES = "upstream"
"""Folder inside ours. It has the small files of the published model, which `--to` copies back."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".index.json")


def convert(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    to: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Write a published model in mmllm's layout, or such a model back in its publishers' layout.

    Args:
        source: folder, hub id or preset of the model.
        target: folder to write; must be empty or not exist.
        to: write the layout of this family, such as llava, instead of mmllm's.
        allow_pickle: read .bin files where there is no safetensors file; their tensors only.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; name a folder that is empty or does not exist")
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
            folder = Path(unfinished) / "model"
            folder.mkdir()
            family = _to_upstream(source, folder, to) if to else _to_ours(source, folder, allow_pickle)
            flush_files(folder)
            if target.exists():
                target.rmdir()
            folder.rename(target)
    except (OSError, SafetensorError) as problem:
        raise cannot_write(target, problem) from None
    print(f"{target}: {f'the layout of {family}' if to else f'mmllm, from {family}'}")


def _to_ours(source: str, folder: Path, allow_pickle: bool) -> str:
    from mmllm.checkpoints.loading import is_ours, load
    from mmllm.hub.sources import local_folder

    upstream = local_folder(source)
    if is_ours(upstream):
        raise InputError(f"{source} is in mmllm's layout already; --to FAMILY writes its publishers' layout")
    model, processor = load(upstream, allow_pickle=allow_pickle, dtype="auto")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    published = folder / PUBLISHED_FILES
    published.mkdir()
    for file in sorted(upstream.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
            shutil.copyfile(file, published / file.name)
    return str((model.config.origin or {})["family"])


def _to_upstream(source: str, folder: Path, to: str) -> str:
    import torch
    from huggingface_hub import save_torch_state_dict

    from mmllm.checkpoints.loading import families, is_ours, own_config
    from mmllm.checkpoints.plausible import check_shapes
    from mmllm.checkpoints.weights import Weights
    from mmllm.fields import closest
    from mmllm.hub.sources import local_folder
    from mmllm.model import MmllmForConditionalGeneration

    by_name = families()
    if to not in by_name:
        raise InputError(f"--to {to}: no such family; {closest(to, by_name)}")
    ours = local_folder(source)
    if not is_ours(ours):
        raise InputError(f"{source} is not in mmllm's layout; convert it without --to first")
    check_shapes(own_config(ours)[0], Weights(ours).meta, ours)
    try:
        model = MmllmForConditionalGeneration.from_pretrained(ours, dtype="auto", trust_remote_code=False)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot load a model from {source}: {problem}") from None
    origin: dict[str, Any] = model.config.origin or {}
    if origin.get("family") != to:
        history = f"made from {origin['family']}" if origin.get("family") else "trained here, from no published model"
        raise InputError(f"{source} was {history}; it cannot be written as {to}")
    state = by_name[to].to_upstream(model)
    # the shapes must still fit the published configuration; the error names tensors that have grown, such as embeddings
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    by_name[to].from_upstream(shapes, by_name[to].describe(origin["config"]))
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, folder)
    if not (ours / PUBLISHED_FILES).is_dir():
        raise CheckpointError(f"{source}: the folder {PUBLISHED_FILES}/ with its publishers' small files is missing")
    for file in sorted((ours / PUBLISHED_FILES).iterdir()):
        shutil.copyfile(file, folder / file.name)
    return to
