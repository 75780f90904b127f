"""The border to transformers: flat keywords outside, one value for each modality inside.

    pixel_values_videos=..., video_times_s=...   <->   {"video": VideoInputs(pixels=..., times_s=...)}

`generate`, the Trainer, `BatchFeature` and saved batches see the left side only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers.utils import TransformersKwargs

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.fields import closest
from mmllm.modalities.inputs import Media, ModalityInputs
from mmllm.modalities.modality import Modality
from mmllm.registry import RegisteredPart

if TYPE_CHECKING:
    from mmllm.config import MmllmConfig

Method = TypeVar("Method", bound=Callable[..., Any])


def modalities() -> dict[str, Modality[Any]]:
    """All registered modalities by name, sorted.

    Raises:
        ConfigError: if one is registered under another name than that of its inputs.
    """
    return dict(_built(tuple(registry.parts("modality").values())))


@functools.lru_cache(maxsize=4)
def _built(parts: tuple[RegisteredPart, ...]) -> dict[str, Modality[Any]]:
    """The modalities of registered parts; they are asked for in every pass of a model."""
    built = {part.name: part.cls(part.config()) for part in parts}
    for name, modality in built.items():
        if modality.name != name:
            raise ConfigError(f"the modality {name!r} has inputs of {modality.name!r}: both need the same name")
    return built


def together(inputs: Iterable[ModalityInputs]) -> Media:
    """Inputs of a batch from inputs of its media; media of one modality are stacked in their order."""
    media = list(inputs)
    return {
        name: modality.inputs.stack(own)
        for name, modality in modalities().items()
        if (own := [medium for medium in media if medium.modality == name])
    }


def flat(media: Media) -> dict[str, Any]:
    """Keyword of transformers -> value."""
    return {keyword: value for inputs in media.values() for keyword, value in inputs.flat().items()}


def flat_names() -> dict[str, str]:
    """Keyword of transformers -> name of the modality that it belongs to."""
    return {keyword: name for name, modality in modalities().items() for keyword in modality.inputs.flat_names.values()}


def media_apart(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that are flat names of media, and the others."""
    names = flat_names()
    named = {keyword: value for keyword, value in keywords.items() if keyword in names}
    return named, {keyword: value for keyword, value in keywords.items() if keyword not in names}


def from_flat(keywords: Mapping[str, Any]) -> Media:
    """The media that are given under flat names.

    Raises:
        InputError: if the tensors of a modality do not fit together.
    """
    given = {name: modality.inputs.from_flat(keywords) for name, modality in modalities().items()}
    return {name: inputs for name, inputs in given.items() if inputs is not None}


def one_media(media: Media | None, named: Mapping[str, Any]) -> Media:
    """A batch's media, given either as values or under flat names.

    Raises:
        InputError: if they are given in both ways, or the tensors of a modality do not fit together.
    """
    if media is None:
        return from_flat(named)
    if keywords := [name for name, value in named.items() if value is not None]:
        raise InputError(f"media are given as values, and {', '.join(keywords)} beside them: give one of the two")
    return media


def refuse_unknown(keywords: Mapping[str, Any], language_model: nn.Module) -> None:
    """Refuses data that no part would use. Switches such as `use_cache` are not data; they go to the LLM unchecked.

    Args:
        keywords: the keywords besides media and the model's own arguments.
        language_model: keywords that it takes by name are allowed, and those of transformers' attention.

    Raises:
        InputError: naming the keyword and similar flat names.
    """
    data = [name for name, value in keywords.items() if isinstance(value, (Tensor, np.ndarray, Mapping, list, tuple))]
    if not data:
        return
    allowed = {*inspect.signature(language_model.forward).parameters, *TransformersKwargs.__annotations__}
    for name in data:
        if name not in allowed:
            raise InputError(f"neither the LLM nor a modality takes {name!r}; {closest(name, flat_names())}")


def lists_flat_names(method: Method) -> Method:
    """Adds the flat names to a method's signature; transformers' Trainer reads there which columns a model needs."""
    signature = inspect.signature(method)
    *own, others = signature.parameters.values()
    assert others.kind is inspect.Parameter.VAR_KEYWORD
    media = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in flat_names()]
    method.__signature__ = signature.replace(parameters=[*own, *media, others])  # type: ignore[attr-defined]
    return method


def placeholders(holder: Any) -> dict[str, int]:
    """Field -> id, for every modality that has a placeholder in a configuration or a processor."""
    ids = {modality.id_field: getattr(holder, modality.id_field, None) for modality in modalities().values()}
    return {field: token for field, token in ids.items() if token is not None}


def parts_of(config: MmllmConfig) -> dict[str, nn.Module]:
    """Name of a modality -> its own weights, for modalities that have a placeholder in the configuration."""
    fields = placeholders(config)
    built = {name: modality.part(config) for name, modality in modalities().items() if modality.id_field in fields}
    return {name: part for name, part in built.items() if part is not None}
