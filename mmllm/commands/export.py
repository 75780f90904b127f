"""`mmllm export MODEL FOLDER --to vllm`: the LLM of a model for an engine, which is sent prompts as embeddings.

`--to vllm-plugin` writes the whole model, which vLLM runs with mmllm's plugin.
"""

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
    to: Literal["vllm", "vllm-plugin"],
    stages: StageFlags = NO_CHANGES,
) -> None:
    """Write a model for an engine: its LLM alone, or all of it.

    Args:
        model: folder or hub id of a model of mmllm's, or of a published one that mmllm loads.
        folder: folder to write; must not exist.
        to: vllm: the LLM in its own layout, for `mmllm serve --engine`, which sends it embeddings. vllm-plugin: the
            whole model, for vLLM in an environment with mmllm; plain paths, text times and countable reducers only.
        stages: stages that replace the model's own; none of them may work inside the LLM.
    """
    checked_source(model)
    if folder.exists():
        raise InputError(f"{folder} exists already; name a folder that does not exist")
    from mmllm.engines.whole_model import save_whole, serve_command
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plain_decoder import save_decoder

    qa = VideoQA.from_pretrained(model, dtype="auto", **stages.by_slot)
    if not isinstance(qa, VideoQA):
        raise InputError(f"{model} is in the layout of transformers, which vllm reads itself: give it that folder")
    if to == "vllm-plugin":
        save_whole(qa, folder)
        print(f"{folder}: {model} for vLLM with mmllm's plugin")
        print(serve_command(qa.processor, folder))
        return
    save_decoder(qa, folder)
    print(f"{folder}: the LLM of {model} for {to}")
    print(f"vllm serve {folder} --enable-prompt-embeds --port 8001")
    print(f"mmllm serve {model} --engine http://127.0.0.1:8001/v1")
