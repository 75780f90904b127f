"""What a reducer asks of the encoder, and the words for when it cannot have it.

A reducer that ranks tokens by what the encoder attends to says so twice: `scores_needed` of an instance names the
scores it will read from `VisualTokens.scores`, and `score_choices` of the class lists the kinds it could work with,
any one of which is enough (empty: it needs none).
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Encoder, EncoderStage, TokenReducer
from mmllm.tokens import VisualTokens


def reducers_for(offers: Collection[str]) -> list[str]:
    """Which reducers, with which setting, work on an encoder that gives these kinds of scores."""
    fitting = []
    for name, part in registry.parts("reducer").items():
        reducer: type[TokenReducer] = part.cls
        choices = reducer.score_choices
        if issubclass(reducer, EncoderStage):
            continue
        if not choices:
            fitting.append(name)
        fitting += [f"{name}:score={kind}" for kind in choices if kind in offers]
    return fitting


def require_fit(reducer: TokenReducer, encoder: Encoder) -> None:
    """Refuses a pair of parts that cannot work together, when a model is put together.

    Raises:
        ConfigError: with what is missing, and the reducers that would work on this encoder.
    """
    if isinstance(reducer, EncoderStage) and not encoder.runs_encoder_stage:
        who, what = reducer.registered_name, encoder.registered_name
        raise ConfigError(
            f"reducer {who!r} works inside the blocks of a transformer with a class token, which encoder {what!r} is "
            f"not; with this encoder use {', '.join(reducers_for(encoder.score_names))}"
        )
    missing = [name for name in reducer.scores_needed if name.partition("@")[0] not in encoder.score_names]
    if missing:
        who, what = reducer.registered_name, encoder.registered_name
        offers = ", ".join(sorted(encoder.score_names)) or "no scores"
        raise ConfigError(
            f"reducer {who!r} ranks tokens by {missing[0]!r}, which encoder {what!r} cannot give (it has {offers}); "
            f"with this encoder use {', '.join(reducers_for(encoder.score_names))}"
        )


def score_of(tokens: VisualTokens, name: str, reducer: str) -> Tensor:
    """The score a reducer ranks by, B T N.

    Raises:
        InputError: if the tokens carry no such score; names the reducers that work with what they carry.
    """
    if name not in tokens.scores:
        carried = ", ".join(sorted(tokens.scores)) or "none"
        kinds = {carried_name.partition("@")[0] for carried_name in tokens.scores}
        raise InputError(
            f"{reducer} ranks tokens by the score {name!r}; these tokens carry {carried}. "
            f"Ask the encoder for it, or use {', '.join(reducers_for(kinds))}"
        )
    return tokens.scores[name]
