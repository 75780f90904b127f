"""`mmllm convert SRC DST`: a published model into our layout, and back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.errors import CheckpointError, InputError

KEPT = "upstream"
"""Folder, inside ours, of a published model's small files, which `--to` puts back."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".index.json")


def convert(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    to: str | None = None,
    allow_pickle: bool = False,
) -> None:
    """Write a published model in mmllm's layout, or one that came from there back in its publishers'.

    Args:
        source: folder, hub id or preset of the model.
        target: folder to write; must not exist, or be empty.
        to: write the layout of this family, such as llava, instead of mmllm's.
        allow_pickle: read .bin files where there is no safetensors file; their tensors only.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; nothing is overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
        folder = Path(unfinished) / "model"
        folder.mkdir()
        family = _to_upstream(source, folder, to) if to else _to_ours(source, folder, allow_pickle)
        if target.exists():
            target.rmdir()
        folder.rename(target)
    print(f"{target}: {f'the layout of {family}' if to else f'mmllm, from {family}'}")


def _to_ours(source: str, folder: Path, allow_pickle: bool) -> str:
    from mmllm.checkpoints.loading import is_ours, load
    from mmllm.hub.sources import local_folder

    upstream = local_folder(source)
    if is_ours(upstream):
        raise InputError(f"{source} is in mmllm's layout already; --to FAMILY writes its publishers'")
    model, processor = load(upstream, allow_pickle=allow_pickle, dtype="auto")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    kept = folder / KEPT
    kept.mkdir()
    for file in sorted(upstream.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not file.name.startswith("."):
            shutil.copyfile(file, kept / file.name)
    return str((model.config.origin or {})["family"])


def _to_upstream(source: str, folder: Path, to: str) -> str:
    import torch
    from huggingface_hub import save_torch_state_dict

    from mmllm.checkpoints.loading import families, is_ours
    from mmllm.fields import closest
    from mmllm.hub.sources import local_folder
    from mmllm.model import MmllmForConditionalGeneration

    known = families()
    if to not in known:
        raise InputError(f"--to {to}: no such family; {closest(to, known)}")
    ours = local_folder(source)
    if not is_ours(ours):
        raise InputError(f"{source} is not in mmllm's layout; convert it without --to first")
    try:
        model = MmllmForConditionalGeneration.from_pretrained(ours, dtype="auto")
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot load a model from {source}: {problem}") from None
    origin: dict[str, Any] = model.config.origin or {}
    if origin.get("family") != to:
        made = f"made from {origin['family']}" if origin.get("family") else "trained here, from no published model"
        raise InputError(f"{source} was {made}; it cannot be written as {to}")
    state = known[to].to_upstream(model)
    # what has grown since, such as a vocabulary with time tokens, is told by name
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    known[to].from_upstream(shapes, known[to].describe(origin["config"]))
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, folder)
    if not (ours / KEPT).is_dir():
        raise CheckpointError(f"{source}: its publishers' small files ({KEPT}/) are gone")
    for file in sorted((ours / KEPT).iterdir()):
        shutil.copyfile(file, folder / file.name)
    return to
