"""Builds reducers and stages for a hosted model, and refuses those that cannot work in it, with what would work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.hosting.carry import check_stages
from mmllm.hosting.media import Source
from mmllm.hosting.scores import Tower
from mmllm.interfaces import EncoderStage, LlmStage, TokenReducer, llm_stages
from mmllm.llm.harness import decoder_layers
from mmllm.pruning.needs import reducers_for
from mmllm.stages import one_or_more


def build_reducers(descriptions: Any, device: torch.device) -> list[TokenReducer]:
    """Reducers from text, mappings, configurations or reducers, one or a list; those built here are put on a device.

    Raises:
        ConfigError: for an unknown reducer or setting.
    """
    return [
        given if isinstance(given, TokenReducer) else registry.build("reducer", given).eval().to(device)
        for given in one_or_more(descriptions)
    ]


def build_stages(descriptions: Any, decoder: Any, device: torch.device) -> list[LlmStage]:
    """Stages inside the LLM, from text, mappings, configurations or stages, one or a list of them.

    Args:
        descriptions: of kind `decoder_stage` or `context`, or of reducers that work inside the LLM.
        decoder: configuration of the LLM.
        device: where the weights of stages belong that are built here.

    Raises:
        ConfigError: for an unknown stage or setting, or a reducer that works before the LLM.
    """
    stages = []
    for given in one_or_more(descriptions):
        stage = given if isinstance(given, LlmStage) else registry.build(_kind(given), given, decoder=decoder)
        if not isinstance(stage, LlmStage):
            raise ConfigError(
                f"{stage.registered_name!r} works before the LLM: give it among reducers, not among stages"
            )
        stages.append(stage.eval().to(device) if isinstance(stage, nn.Module) and stage is not given else stage)
    return stages


_KINDS = ("decoder_stage", "context")
"""Kinds of stages that are no reducers."""


def _kind(description: Any) -> str:
    """The kind of part that a stage's description names."""
    for kind in _KINDS:
        known = registry.parts(kind)
        if isinstance(description, (str, Mapping)):
            if registry.named(kind, description)[0] in known:
                return kind
        elif any(part.config is type(description) for part in known.values()):
            return kind
    return "reducer"


def split_by_place(
    reducers: Sequence[TokenReducer], stages: Sequence[LlmStage]
) -> tuple[list[TokenReducer], list[LlmStage]]:
    """The reducers that work before the LLM, and everything that works inside it, in order.

    Raises:
        ConfigError: if more than one removes keys from the cache.
    """
    before = [reducer for reducer in reducers if not isinstance(reducer, LlmStage)]
    return before, llm_stages([*reducers, *stages])


def require_fit(
    model_type: str, towers: Mapping[Source, Tower], decoder: nn.Module, reducers: Sequence[TokenReducer],
    stages: Sequence[LlmStage],
) -> None:  # fmt: skip
    """Refuses reducers and stages that cannot work in a hosted model.

    Args:
        model_type: of the model.
        towers: feature method -> its vision tower, where attention can be noted.
        decoder: the LLM without its head.
        reducers: those before the LLM.
        stages: those inside it.

    Raises:
        ConfigError: naming the reason, and the reducers that work in this model.
    """
    for reducer in reducers:
        name = reducer.registered_name
        reason = None
        if isinstance(reducer, EncoderStage):
            reason = "works inside the blocks of an encoder of ours, and a hosted model runs its own tower"
        elif reducer.layout == "line":
            reason = "keeps the first of ordered 1D tokens, and a hosted model has patches"
        elif reducer.question_reader is not None and not reducer.question_reader.llm:
            reason = "reads the question in another vocabulary than the LLM's, which a hosted model's prompt has alone"
        elif reducer.scores_needed and not towers:
            reason = f"ranks tokens by {reducer.scores_needed[0]!r}, which cannot be read from this model's tower"
        if reason is not None:
            raise ConfigError(f"reducer {name!r} {reason}; {_advice(model_type, towers, decoder)}")
        for score in reducer.scores_needed:
            for tower in towers.values():
                try:
                    tower.block(score)
                except ConfigError as error:
                    advice = _advice(model_type, towers, decoder)
                    raise ConfigError(f"reducer {name!r} ranks tokens by a score: {error}; {advice}") from error
    check_stages(decoder, stages)


def _advice(model_type: str, towers: Mapping[Source, Tower], decoder: nn.Module) -> str:
    return f"with models of type {model_type!r} use {', '.join(fitting(towers, decoder))}"


def fitting(towers: Mapping[Source, Tower], decoder: nn.Module) -> list[str]:
    """The reducers, with their setting, that work in a hosted model.

    Args:
        towers: feature method -> its vision tower, where attention can be noted.
        decoder: the LLM without its head.
    """
    kinds = set.intersection(*(set(tower.kinds) for tower in towers.values())) if towers else set()
    try:
        decoder_layers(decoder)
    except ConfigError:
        inside = False
    else:
        inside = True
    names = []
    for name in reducers_for(kinds, "grid"):
        cls: Any = registry.find("reducer", name.partition(":")[0]).cls
        if issubclass(cls, LlmStage) and not inside:
            continue
        needed = registry.build("reducer", f"{name},ratio=1").scores_needed if ":" in name else ()
        if all(tower.offers(score) for score in needed for tower in towers.values()):
            names.append(name)
    return names
