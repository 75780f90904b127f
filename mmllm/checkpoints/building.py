"""From a published state dict to a model and back, strictly; what all families do alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmllm import registry
from mmllm.checkpoints.names import COMPUTED, Names, Table, first_choices, found, to_ours, to_theirs
from mmllm.checkpoints.weights import Weights
from mmllm.config import MmllmConfig
from mmllm.encoders.clip import load_clip_tower
from mmllm.encoders.siglip import load_siglip_tower
from mmllm.encoders.tower import check_fit
from mmllm.errors import CheckpointError
from mmllm.hub.sources import local_folder, read_json
from mmllm.model import MmllmForConditionalGeneration

HEAD, TOWER_PLACE = "language_model.lm_head.", "encoder.tower."


def assemble(
    state: Mapping[str, Tensor],
    config: MmllmConfig,
    table: Table,
    *,
    what: str,
    tower: Mapping[str, Tensor] | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> MmllmForConditionalGeneration:
    """A model with the weights of a state dict; how it was named is kept in `config.origin`.

    Names and shapes are compared with a model without storage before one is made that has some. Tensors on the meta
    device give that model itself, so that a whole checkpoint can be checked before any of it is read.

    Args:
        state: their names -> tensors, all that the file holds.
        config: what to build.
        table: where the family has put what.
        what: the family, for messages.
        tower: CLIP's or SigLIP's weights under any of their names, for a state dict that lacks its vision tower, as the
            authors' mostly do; otherwise they are read from where `mm_vision_tower` says, and not written back.
        allow_pickle: read such a tower from a pickle, too; its tensors only.
        options: of transformers' `from_pretrained`, such as `dtype`; the type of the tensors by default.

    Raises:
        CheckpointError: listing what is missing, left over or of another shape.
    """
    names = found(state, table)
    # whatever the configuration says: a head that is in the file is used, one that is not is the embedding table
    tied = HEAD not in names
    if tied and not config.tie_word_embeddings:
        raise CheckpointError(f"weights do not fit {what}; missing: {table[HEAD][0]}weight")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    apart: dict[str, Tensor] = {}
    upstream = (config.origin or {}).get("config", {})
    if TOWER_PLACE in table and TOWER_PLACE not in names and "mm_vision_tower" in upstream:
        meta = any(tensor.is_meta for tensor in state.values())
        apart = _tower_apart(config, tower, meta=meta, allow_pickle=allow_pickle)
        if tower is not None:
            names[TOWER_PLACE] = table[TOWER_PLACE][-1]
            state, apart = {**state, **to_theirs(apart, names)}, {}
    config.origin = {**(config.origin or {}), "names": names}
    with torch.device("meta"):
        model = MmllmForConditionalGeneration(config)
    shell = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name.startswith(HEAD))}
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COMPUTED)}
    wanted = {name: tensor for name, tensor in shell.items() if name not in apart}
    check_fit(given, to_theirs(wanted, {**first_choices(table), **names}), what=what)
    if any(tensor.is_meta for tensor in given.values()):
        return model.eval()
    ours = {**to_ours(state, names), **apart}
    options.setdefault("dtype", ours["language_model.model.embed_tokens.weight"].dtype)
    return _filled(config, ours, options)


def _tower_apart(
    config: MmllmConfig, given: Mapping[str, Tensor] | None, *, meta: bool, allow_pickle: bool
) -> dict[str, Tensor]:
    """A CLIP or SigLIP tower that a checkpoint lacks, under our names: what is given, or what `mm_vision_tower` names.

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
        _same_activation(config, weights.folder)
        given = weights.meta if meta else weights.read()
    with torch.device("meta" if meta else "cpu"):
        encoder = registry.build("encoder", config.encoder)
    load = load_siglip_tower if config.encoder["name"] == "siglip" else load_clip_tower
    load(encoder, given)
    return {TOWER_PLACE + name: tensor for name, tensor in encoder.tower.state_dict().items()}


def _same_activation(config: MmllmConfig, folder: Path) -> None:
    """Refuses a tower that was trained with another activation than it would be run with."""
    if "activation" not in config.encoder or not (folder / "config.json").is_file():
        return
    described = read_json(folder / "config.json")
    theirs = described.get("vision_config", described).get("hidden_act", "quick_gelu")
    ours = config.encoder["activation"]
    if theirs != ours:
        raise CheckpointError(f"{folder}: this tower was trained with activation {theirs!r}, the model has {ours!r}")


def _filled(config: MmllmConfig, state: dict[str, Tensor], options: dict[str, Any]) -> MmllmForConditionalGeneration:
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
    """A model's weights under the names they were read by, or the family's first choice of names.

    Raises:
        CheckpointError: naming a tensor that the family has no name for.
    """
    names: Names = (model.config.origin or {}).get("names") or first_choices(table)
    apart = [place for place in table if place not in names]
    return to_theirs(model.state_dict(), names, left_out=apart)
