"""Loading a video LLM of transformers for questions: its own classes, with weights where transformers puts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmllm import registry
from mmllm.checkpoints.loading import families, read_config
from mmllm.errors import CheckpointError, ConfigError, MmllmError, is_out_of_memory, require_extra
from mmllm.hosting.family import family_of
from mmllm.hosting.model import HostedModel
from mmllm.hosting.prompting import Prompting
from mmllm.inference.hosted import HostedVideoQA


def is_hosted(folder: Path) -> bool:
    """Whether a folder holds a model that is hosted: transformers' own layout, and none that mmllm builds itself."""
    upstream = read_config(folder)
    kind = upstream.get("model_type")
    if kind == "mmllm" or any(family.recognises(upstream) for family in families().values()):
        return False
    return any(kind in part.cls.model_types for part in registry.parts("host").values())  # type: ignore[attr-defined]


def load_hosted(folder: Path, options: Mapping[str, Any]) -> HostedVideoQA:
    """The model of a folder with its processor; no code of the folder is run.

    Args:
        folder: as transformers saved it.
        options: `reducers`, `decoder_stages`, `context`, the settings of `HostedVideoQA`, and those of transformers'
            `from_pretrained`, such as `dtype`, `device_map` and `quantization_config`.

    Raises:
        CheckpointError: if the files hold no such model.
        ConfigError: for a stage that a hosted model has not.
    """
    from transformers import AutoModelForImageTextToText

    given = dict(options)
    for name in ("path", "visual_tokenizer", "encoder", "allow_pickle"):
        if given.pop(name, None) is not None:
            raise ConfigError(f"{name} cannot be given for a hosted model: it runs its own")
    reducers, stages = given.pop("reducers", None) or (), given.pop("decoder_stages", None) or ()
    context = given.pop("context", None) or ()
    settings = {name: given.pop(name) for name in ("times", "reader", "prompt") if given.get(name) is not None}
    positions: Any = given.pop("positions", None) or "transformers"
    given = {name: value for name, value in given.items() if name not in HostedVideoQA.settings}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.setdefault("dtype", torch.float32 if device == "cpu" else "auto")
    processor = hosted_processor(folder)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **given
        )
    except MmllmError:
        raise
    except Exception as problem:  # libraries raise errors of many types about files
        if is_out_of_memory(problem):
            raise
        raise CheckpointError(f"{folder}: cannot load the model: {' '.join(str(problem).split()):.400}") from None
    if missing := sorted(map(str, info["missing_keys"])):
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(missing[:5])}")
    placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
    model = model if placed else model.to(device)
    return HostedVideoQA(
        HostedModel(model, processor, reducers=reducers, stages=stages, context=context, positions=positions),
        **settings,
    )


def hosted_processor(folder: Path) -> Any:
    """The processor of a folder.

    Raises:
        CheckpointError: if its files are missing or damaged.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:
        raise CheckpointError(f"{folder}: cannot load the processor: {' '.join(str(problem).split()):.400}") from None


def hosted_config(folder: Path) -> Any:
    """The configuration of a folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def hosted_prompting(folder: Path) -> tuple[Any, Prompting]:
    """The configuration of a folder's model, and its processor for prompts; no weights are read."""
    config = hosted_config(folder)
    return config, Prompting(hosted_processor(folder), family_of(config))


def with_adapter(qa: HostedVideoQA, folder: str | Path) -> HostedVideoQA:
    """The model with the adapters of a folder in its layers.

    Raises:
        CheckpointError: if the adapters do not fit the model.
    """
    require_extra("train", f"{folder}: a model with adapters", "peft")
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(qa.model.model, str(folder))
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise CheckpointError(f"{folder}: these adapters do not fit their model: {problem!s:.600}") from None
    hosted = qa.model
    stages = [stage for stage in hosted.stages if stage not in hosted.reducers]
    model = HostedModel(
        adapted, hosted.processor, reducers=hosted.reducers, stages=stages, positions=hosted.position_rule
    )
    return HostedVideoQA(
        model, times=qa.times, reader=qa.reader, prompt=qa.prompt_setting, max_new_tokens=qa.max_new_tokens
    )
