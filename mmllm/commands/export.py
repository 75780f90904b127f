"""`mmllm export MODEL FOLDER --to vllm`: the LLM of a model for an engine, which is sent prompts as embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmllm.commands.flags import StageFlags
from mmllm.errors import InputError
from mmllm.hub.sources import checked_source
from mmllm.stages import NO_CHANGES


def export(
    model: Annotated[str, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    to: Literal["vllm"],
    stages: StageFlags = NO_CHANGES,
) -> None:
    """Write the LLM of a model in its own layout, for an engine that `mmllm serve --engine` sends embeddings to.

    Args:
        model: folder or hub id of a model of mmllm's, or of a published one that mmllm loads.
        folder: folder to write; must not exist.
        to: the engine.
        stages: stages that replace the model's own; none of them may work inside the LLM.
    """
    checked_source(model)
    if folder.exists():
        raise InputError(f"{folder} exists already; name a folder that does not exist")
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plain_decoder import save_decoder

    qa = VideoQA.from_pretrained(model, dtype="auto", **stages.by_slot)
    if not isinstance(qa, VideoQA):
        raise InputError(f"{model} is in the layout of transformers, which {to} reads itself: give it that folder")
    save_decoder(qa, folder)
    print(f"{folder}: the LLM of {model} for {to}")
    print(f"vllm serve {folder} --enable-prompt-embeds --port 8001")
    print(f"mmllm serve {model} --engine http://127.0.0.1:8001/v1")
