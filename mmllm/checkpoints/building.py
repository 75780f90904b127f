"""A published state dict to a model and back, strictly: the part that is the same for all families."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmllm import registry
from mmllm.checkpoints.names import COMPUTED, Names, Table, first_choices, to_ours, to_theirs, used_prefixes
from mmllm.checkpoints.weights import Weights
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import load_clip_tower
from mmllm.encoders.siglip import load_siglip_tower
from mmllm.errors import CheckpointError
from mmllm.hub.sources import local_folder, read_json
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.tower import check_fit

HEAD, TOWER_PLACE = "language_model.lm_head.", "encoder.tower."


def assemble(
    state: Mapping[str, Tensor],
    config: MmllmConfig,
    table: Table,
    *,
    what: str,
    tower: Mapping[str, Tensor] | None = None,
    apart: Mapping[str, Tensor] | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> MmllmForConditionalGeneration:
    """A model with the weights of a state dict. `config.origin` keeps the names of the tensors.

    Names and shapes are first compared with a model on the meta device, which has no storage. If the tensors are on the
    meta device too, that model is returned. So a whole checkpoint can be checked before its weights are read.

    Args:
        state: published names -> tensors; all tensors of the file.
        config: the configuration of the model.
        table: our prefixes and those of the family.
        what: the family, for messages.
        tower: weights of CLIP or SigLIP, under any of their names, for a state dict without a vision tower; most files
            of the authors have none. If None, they are read from `mm_vision_tower`, and not written back.
        apart: further weights, under our names, that the file does not have; they are not written back.
        allow_pickle: read such a tower from a pickle, too; its tensors only.
        options: of transformers' `from_pretrained`, such as `dtype`; the type of the tensors by default.

    Raises:
        CheckpointError: listing the tensors that are missing, unexpected or of another shape.
    """
    # step 1: the prefixes that this file uses, and whether it has a head
    names = used_prefixes(state, table)
    # the file decides, not the configuration: without a head in the file, the embedding table is the head
    tied = HEAD not in names
    if tied and not config.tie_word_embeddings:
        raise CheckpointError(f"weights do not fit {what}; missing: {table[HEAD][0]}weight")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    # step 2: the vision tower, if the file has none
    tower_state = dict(apart or {})
    upstream = (config.origin or {}).get("config", {})
    if TOWER_PLACE in table and TOWER_PLACE not in names and "mm_vision_tower" in upstream:
        meta = any(tensor.is_meta for tensor in state.values())
        tower_state = _separate_tower(config, tower, meta=meta, allow_pickle=allow_pickle)
        if tower is not None:
            names[TOWER_PLACE] = table[TOWER_PLACE][-1]
            state, tower_state = {**state, **to_theirs(tower_state, names)}, {}
    config.origin = {**(config.origin or {}), "names": names}
    # step 3: names and shapes are compared with a model without storage
    with torch.device("meta"):
        model = MmllmForConditionalGeneration(config)
    shell = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name.startswith(HEAD))}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COMPUTED)}
    expected = {name: tensor for name, tensor in shell.items() if name not in tower_state}
    check_fit(given, to_theirs(expected, {**first_choices(table), **names}), what=what)
    if any(tensor.is_meta for tensor in given.values()):
        return model.eval()
    # step 4: a model with the weights
    ours = {**to_ours(state, names), **tower_state}
    options.setdefault("dtype", ours["language_model.model.embed_tokens.weight"].dtype)
    return _filled(config, ours, options)


def _separate_tower(
    config: MmllmConfig, given: Mapping[str, Tensor] | None, *, meta: bool, allow_pickle: bool
) -> dict[str, Tensor]:
    """The weights, under our names, of a CLIP or SigLIP tower that is not in the checkpoint.

    They are those given, or those that `mm_vision_tower` names.

    Raises:
        CheckpointError: if there are no such weights, or they do not fit the tower that the configuration describes.
    """
    if given is None:
        origin = config.origin or {}
        name = origin.get("tower") or origin["config"]["mm_vision_tower"]
        try:
            weights = Weights(local_folder(name, allow_pickle=allow_pickle), allow_pickle=allow_pickle)
        except CheckpointError as problem:
            raise CheckpointError(f"this checkpoint has no vision tower of its own, and {problem}") from None
        _check_activation(config, weights.folder)
        given = weights.meta if meta else weights.read()
    with torch.device("meta" if meta else "cpu"):
        encoder = registry.build("encoder", config.encoder)
    load = load_siglip_tower if config.encoder["name"] == "siglip" else load_clip_tower
    load(encoder, given)
    return {TOWER_PLACE + name: tensor for name, tensor in encoder.tower.state_dict().items()}


def _check_activation(config: MmllmConfig, folder: Path) -> None:
    """Refuses a tower that was trained with another activation than the model has.

    Raises:
        CheckpointError: naming both.
    """
    if "activation" not in config.encoder or not (folder / "config.json").is_file():
        return
    published = read_json(folder / "config.json")
    theirs = published.get("vision_config", published).get("hidden_act", "quick_gelu")
    ours = config.encoder["activation"]
    if theirs != ours:
        raise CheckpointError(f"{folder}: this tower was trained with activation {theirs!r}, the model has {ours!r}")


def _filled(config: MmllmConfig, state: dict[str, Tensor], options: dict[str, Any]) -> MmllmForConditionalGeneration:
    """A model with these weights, under our names. transformers' loggers are silent: the weights are checked before."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        model, report = MmllmForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, **options
        )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    unexpected = [*report["missing_keys"], *report["unexpected_keys"]]
    assert not unexpected, unexpected
    return model.eval()


def disassemble(model: MmllmForConditionalGeneration, table: Table) -> dict[str, Tensor]:
    """The weights of a model under the names that its file had. Without a file, the family's first choice of names.

    Raises:
        CheckpointError: naming a tensor for which the family has no name.
    """
    names: Names = (model.config.origin or {}).get("names") or first_choices(table)
    absent = [prefix for prefix in table if prefix not in names]
    return to_theirs(model.state_dict(), names, left_out=absent)
