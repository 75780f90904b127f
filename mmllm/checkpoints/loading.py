"""Published models from a folder or a hub id: their family, and the model with its processor.

A family is a file of this room with the five functions of `Family`. A new family is a new file.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Protocol, cast

from torch import Tensor
from transformers import GenerationConfig

from mmllm.checkpoints.plausible import check_config, check_layers, check_small_files, check_tokenizer
from mmllm.checkpoints.weights import Weights
from mmllm.config import MmllmConfig
from mmllm.errors import CheckpointError, MmllmError, is_out_of_memory
from mmllm.hub.sources import local_folder, read_json
from mmllm.model import MmllmForConditionalGeneration
from mmllm.preprocessing.foreign_code import within_deadline
from mmllm.preprocessing.question_reader import FOLDER as QUESTION_TOKENIZER
from mmllm.processor import MmllmProcessor
from mmllm.runtime.precision import on_cpu
from mmllm.stages import changed, stages_of

LOADING_S = 120.0
"""Seconds by the clock for a tokenizer's files."""


class Family(Protocol):
    """What the file of a family has."""

    NAME: str

    def recognises(self, upstream: Mapping[str, Any]) -> bool:
        """Whether a `config.json` belongs to this family."""

    def describe(self, upstream: Mapping[str, Any], folder: Path | None = None) -> MmllmConfig:
        """Our configuration of a `config.json`; further files of the folder may add to it."""

    def from_upstream(
        self, state: Mapping[str, Tensor], config: MmllmConfig | Mapping[str, Any], **options: Any
    ) -> MmllmForConditionalGeneration:
        """A model with the published weights. Tensors on the meta device give a model on the meta device."""

    def to_upstream(self, model: MmllmForConditionalGeneration) -> dict[str, Tensor]:
        """The model's weights under the published names."""

    def processor(self, folder: Path, config: MmllmConfig) -> MmllmProcessor:
        """The processor that the files of the folder describe."""


def families() -> dict[str, Family]:
    """All families by name."""
    room = Path(__file__).parent
    modules = [importlib.import_module(f"mmllm.checkpoints.{file.stem}") for file in sorted(room.glob("[!_]*.py"))]
    return {module.NAME: cast(Family, module) for module in modules if hasattr(module, "NAME")}


def family_of(upstream: Mapping[str, Any]) -> Family:
    """The family that a `config.json` belongs to.

    Raises:
        CheckpointError: if it belongs to none; the message lists the families.
    """
    by_name = families()
    for family in by_name.values():
        if family.recognises(upstream):
            return family
    kind, names = upstream.get("model_type"), upstream.get("architectures")
    raise CheckpointError(
        f"model_type {kind!r} (architectures {names}) belongs to no family: must be one of mmllm, {', '.join(by_name)}"
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a model that mmllm has saved."""
    return bool(read_config(folder).get("model_type") == "mmllm")


def read_config(folder: Path) -> dict[str, Any]:
    """The mapping of a folder's `config.json`.

    Raises:
        CheckpointError: if it is missing or no JSON object.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: this folder holds no model (no config.json)")
    config = read_json(folder / "config.json")
    check_config(config, folder / "config.json")
    check_small_files(folder)
    if not isinstance(config.get("model_type"), (str, NoneType)):
        raise CheckpointError(f"{folder}: model_type in config.json must be a text")
    return config


def described(folder: Path, visual_tokenizer: Any = None) -> tuple[Family, MmllmConfig, MmllmProcessor]:
    """The family, the configuration and the processor of a published model; no weights are read.

    Args:
        folder: the model's folder.
        visual_tokenizer: other settings of the family's own that need no new weights, such as `mqt:tokens=16`.

    Raises:
        CheckpointError: naming what is wrong.
    """
    upstream = read_config(folder)
    family = family_of(upstream)
    check_tokenizer(folder)
    config = _described(family, upstream, folder)
    config.visual_tokenizer = changed(stages_of(config), {"visual_tokenizer": visual_tokenizer})["visual_tokenizer"]
    with _as_checkpoint_errors(f"{folder}: its processor cannot be read"):
        processor = family.processor(folder, config)
    config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id
    return family, config, processor


def describe(folder: Path) -> tuple[MmllmConfig, MmllmProcessor]:
    """The configuration and the processor of a model in our layout or its publishers'; no weights are read.

    Raises:
        CheckpointError: if there is no model, or its family is unknown.
    """
    if not is_ours(folder):
        _, config, processor = described(folder)
        return config, processor
    return own_config(folder)[0], own_processor(folder)


def own_config(folder: Path, **changes: Any) -> tuple[MmllmConfig, dict[str, Any]]:
    """The configuration of a model that mmllm has saved, and the options of loading that are no field of it.

    Raises:
        CheckpointError: if it describes no model.
    """
    with _as_checkpoint_errors(f"cannot read a model's configuration from {folder}"):
        return MmllmConfig.from_pretrained(folder, return_unused_kwargs=True, **changes)


def own_processor(folder: Path) -> MmllmProcessor:
    """The processor of a model that mmllm has saved; no code of the folder is run.

    Raises:
        CheckpointError: if its files are damaged.
    """
    check_tokenizer(folder)
    check_tokenizer(folder / QUESTION_TOKENIZER)
    with _as_checkpoint_errors(f"cannot read a model's processor from {folder}"):
        return within_deadline(lambda: MmllmProcessor.from_pretrained(folder, trust_remote_code=False), LOADING_S)


def _described(family: Family, upstream: Mapping[str, Any], folder: Path) -> MmllmConfig:
    with _as_checkpoint_errors(f"{folder}: config.json describes no model of the family {family.NAME}"):
        return family.describe(upstream, folder)


def number_type(asked: Any, folder: Path, device: str) -> Any:
    """The `dtype` with which transformers loads a model, for the type that a user asks for; see `on_cpu`.

    Args:
        asked: a type or its name, "auto", or None for float32 on a CPU and the type of the files elsewhere.
        folder: the model's.
        device: where it will compute.

    Raises:
        ConfigError: if a model cannot compute in it.
    """
    if device != "cpu":
        return asked or "auto"
    upstream = read_config(folder)
    return on_cpu(asked, upstream.get("dtype") or upstream.get("torch_dtype"))


@contextlib.contextmanager
def _as_checkpoint_errors(what: str) -> Iterator[None]:
    """Errors of other libraries about a folder's files become a CheckpointError of one line."""
    try:
        yield
    except MmllmError as problem:
        if isinstance(problem, CheckpointError) or type(problem).__name__ == "ConfigError":
            raise
        raise CheckpointError(f"{what}: {problem}") from None
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        name = "" if isinstance(problem, (OSError, ValueError)) else f"{type(problem).__name__}: "
        raise CheckpointError(f"{what}: {name}{' '.join(str(problem).split())[:400]}") from None


def load(
    source: str | Path, *, allow_pickle: bool = False, **options: Any
) -> tuple[MmllmForConditionalGeneration, MmllmProcessor]:
    """A published model with its processor.

    All checks come before weights are read: the family, missing or cut-off files, names and shapes of the tensors, the
    tokenizer.

    Args:
        source: folder or hub id.
        allow_pickle: read `.bin` files where there is no safetensors file; their tensors only.
        options: of transformers' `from_pretrained`, such as `dtype`; and `visual_tokenizer`, see `described`.

    Raises:
        CheckpointError: naming what is wrong.
    """
    folder = local_folder(source, allow_pickle=allow_pickle)
    family, config, processor = described(folder, options.pop("visual_tokenizer", None))
    weights = Weights(folder, allow_pickle=allow_pickle)
    check_layers(config, weights.meta, folder)
    if options.get("dtype") == "auto":
        options.pop("dtype")  # the default is the type of the weights
    options["allow_pickle"] = allow_pickle
    family.from_upstream(weights.meta, config, **options)
    model = family.from_upstream(weights.read(), config, **options)
    _generation_settings(model, folder)
    return model, processor


def _generation_settings(model: MmllmForConditionalGeneration, folder: Path) -> None:
    """Reads the folder's generation settings; what they leave out stays as the LLM's configuration says.

    Raises:
        CheckpointError: if the file is damaged or has settings that are not allowed.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    try:
        settings = GenerationConfig.from_dict(read_json(file))
        settings.update(**model.generation_config.to_dict(), defaults_only=True)
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"{file}: these settings are not allowed: {problem}") from None
    model.generation_config = settings
