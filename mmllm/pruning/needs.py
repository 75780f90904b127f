"""Which scores a reducer needs of the encoder, and the errors if the encoder cannot give them.

A reducer that ranks tokens by the encoder's attention declares it in two places. `scores_needed` of an instance names
the scores that it reads from `VisualTokens.scores`. `score_choices` of the class lists the kinds that it can work with;
one of them is enough, and an empty list means that it needs none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Encoder, EncoderStage, LlmStage, ProjectedReducer, TokenReducer
from mmllm.tokens import VisualTokens

_LAYOUTS = {"grid": "patches on a grid", "line": "ordered 1D tokens"}


def reducers_for(offers: Collection[str], layout: str) -> list[str]:
    """The reducers, with their setting, that work on an encoder that gives these kinds of scores on this layout."""
    names = []
    for name, part in registry.parts("reducer").items():
        reducer: type[TokenReducer] = part.cls
        choices = reducer.score_choices
        if issubclass(reducer, EncoderStage) or reducer.layout not in (None, layout):
            continue
        if reducer.needs_keys and "keys" not in offers:
            continue
        if not choices:
            names.append(":".join(filter(None, (name, reducer.plain_choice))))
        names += [f"{name}:score={kind}" for kind in choices if kind in offers]
    return names


def where_it_acts(reducer: type[TokenReducer]) -> str:
    """The place of a reducer in a model, in words."""
    places = {LlmStage: "inside the LLM", EncoderStage: "inside the encoder", ProjectedReducer: "behind the projector"}
    return next((words for base, words in places.items() if issubclass(reducer, base)), "behind the encoder")


def what_it_needs(reducer: type[TokenReducer]) -> str:
    """What a reducer needs of the encoder or the LLM, in words; empty if nothing."""
    scores = " or ".join(reducer.score_choices)
    layout = "" if reducer.layout is None else _LAYOUTS[reducer.layout]
    tower = f"CLIP's text tower, or {reducer.plain_choice}" if reducer.plain_choice else ""
    return ", ".join(filter(None, (scores, "keys" if reducer.needs_keys else "", layout, tower, reducer.other_needs)))


def counts_by_shape(reducer: type[TokenReducer]) -> str:
    """Whether a reducer says what remains of a video before it is seen, for most of its settings."""
    return "no" if reducer.counts_by_shape is TokenReducer.counts_by_shape else "yes"


def is_question_aware(reducer: type[TokenReducer]) -> str:
    """With which settings what a reducer keeps depends on the question, in words; `no` if it never does."""
    if issubclass(reducer, LlmStage):
        return "yes" if reducer.depends_on_question else "no"
    return " or ".join(reducer.question_choices) or "no"


def by_place(reducers: Sequence[TokenReducer]) -> tuple[list[TokenReducer], list[TokenReducer]]:
    """The reducers in front of the projector, and those behind it."""
    behind = [reducer for reducer in reducers if isinstance(reducer, ProjectedReducer)]
    return [reducer for reducer in reducers if reducer not in behind], list(behind)


def require_all_fit(reducers: Sequence[TokenReducer], encoders: Sequence[Encoder | None]) -> None:
    """Refuses reducers that do not work with these encoders, or that stand in another order than they run in.

    Raises:
        ConfigError: naming what does not fit.
    """
    for reducer in reducers:
        for encoder in filter(None, encoders):
            require_fit(reducer, encoder)
    check_order(reducers)


def require_fit(reducer: TokenReducer, encoder: Encoder) -> None:
    """Refuses a reducer and an encoder that cannot work together; called when a model is put together.

    Raises:
        ConfigError: naming what is missing, and the reducers that work on this encoder.
    """
    layout = "line" if encoder.grid is None else "grid"
    advice = f"with this encoder use {', '.join(reducers_for(encoder.score_names, layout))}"
    if isinstance(reducer, EncoderStage) and not encoder.runs_encoder_stage:
        raise ConfigError(
            f"reducer {reducer.registered_name!r} works inside the blocks of a transformer with a class token, and "
            f"encoder {encoder.registered_name!r} is none; {advice}"
        )
    if reducer.layout not in (None, layout):
        raise ConfigError(
            f"reducer {reducer.registered_name!r} needs {_LAYOUTS[str(reducer.layout)]}, and encoder "
            f"{encoder.registered_name!r} gives {_LAYOUTS[layout]}; {advice}"
        )
    if reducer.needs_text_tower and not encoder.has_text_tower:
        others = ", ".join((*reducer.question_choices, reducer.plain_choice))
        raise ConfigError(
            f"reducer {reducer.registered_name!r} compares patches with the question through CLIP's text tower, and "
            f"encoder {encoder.registered_name!r} has none: choose another of {others}; {advice}"
        )
    missing = [name for name in reducer.scores_needed if name.partition("@")[0] not in encoder.score_names]
    if missing:
        offers = ", ".join(sorted(encoder.score_names)) or "no scores"
        raise ConfigError(
            f"reducer {reducer.registered_name!r} ranks tokens by {missing[0]!r}, which encoder "
            f"{encoder.registered_name!r} cannot give (it has {offers}); {advice}"
        )


def check_order(reducers: Sequence[TokenReducer]) -> None:
    """Refuses a reducer in front of the projector that is listed after one behind it.

    Raises:
        ConfigError: naming both.
    """
    behind = ""
    for reducer in reducers:
        if isinstance(reducer, ProjectedReducer):
            behind = reducer.registered_name
        elif behind and not isinstance(reducer, LlmStage):
            raise ConfigError(
                f"reducer {reducer.registered_name!r} acts before the projector, and {behind!r}, which is listed "
                f"before it, behind the projector: list {reducer.registered_name!r} first"
            )


def score_of(tokens: VisualTokens, name: str, reducer: str) -> Tensor:
    """The score by which a reducer ranks, B T N.

    Raises:
        InputError: if the tokens have no such score; the message names the reducers that work with their scores.
    """
    if name not in tokens.scores:
        carried = ", ".join(sorted(tokens.scores)) or "none"
        kinds = {carried_name.partition("@")[0] for carried_name in tokens.scores}
        usable = reducers_for(kinds, "line" if tokens.grid is None else "grid")
        raise InputError(
            f"{reducer} ranks tokens by the score {name!r}; these tokens carry {carried}. "
            f"Ask the encoder for it, or use {', '.join(usable)}"
        )
    return tokens.scores[name]
