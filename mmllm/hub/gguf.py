"""LLMs in a GGUF file, as llama.cpp stores them, in transformers' usual layout."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

from mmllm.errors import CheckpointError, is_out_of_memory, require_extra
from mmllm.hub.packages import sha256_of
from mmllm.runtime.files import cache_folder, make_folder, new_folder

SUFFIX = ".gguf"


def converted(file: Path) -> Path:
    """The folder of the LLM of a GGUF file: configuration, tokenizer with chat template, and weights in float32.

    It is made once, in the cache, under the hash of the file. Quantised numbers keep the values that they stand for.

    Raises:
        MissingExtra: if the libraries that read such a file are not installed.
        CheckpointError: if transformers cannot read it.
    """
    folder = _folder_of(file)
    if (folder / "config.json").is_file():
        return folder
    require_extra("gguf", f"reading {file.name}")
    make_folder(folder.parent)
    with new_folder(folder) as partial:
        _convert(file, partial)
    return folder


def can_convert(file: Path) -> bool:
    """Whether `converted` lacks nothing: the library is installed, or the file was converted earlier."""
    return importlib.util.find_spec("gguf") is not None or (_folder_of(file) / "config.json").is_file()


def _folder_of(file: Path) -> Path:
    return cache_folder("gguf") / f"{file.stem}-{sha256_of(file)[:16]}"


def _convert(file: Path, folder: Path) -> None:
    """Writes model and tokenizer.

    The configuration of a model that was read from such a file says that it is quantised, and transformers would not
    save that one. So its weights go into a model of the configuration without that entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        given = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as problem:  # readers of damaged files raise many types of errors
        if is_out_of_memory(problem):
            raise
        reason = " ".join(str(problem).split())
        raise CheckpointError(f"{file}: transformers cannot read this file: {reason:.300}") from None
    config = copy.deepcopy(given.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(given.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
