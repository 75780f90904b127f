"""The border to transformers: flat keywords outside, one value for each modality inside.

    pixel_values_videos=..., video_times_s=...   <->   {"video": VideoInputs(pixels=..., times_s=...)}

`generate`, the Trainer, `BatchFeature` and saved batches see the left side only.
"""

from __future__ import annotations

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

if TYPE_CHECKING:
    from mmllm.config import MmllmConfig

Method = TypeVar("Method", bound=Callable[..., Any])


def modalities() -> dict[str, Modality[Any]]:
    """All registered modalities by name, sorted.

    Raises:
        ConfigError: if one is registered under another name than its inputs have.
    """
    built = {name: part.cls(part.config()) for name, part in registry.parts("modality").items()}
    for name, modality in built.items():
        if modality.name != name:
            raise ConfigError(f"the modality {name!r} has inputs of {modality.name!r}: both need the same name")
    return built


def together(inputs: Iterable[ModalityInputs]) -> Media:
    """Inputs of a batch from inputs of its media: those of one modality are stacked in their order."""
    listed = list(inputs)
    return {
        name: modality.inputs.stack(own)
        for name, modality in modalities().items()
        if (own := [one for one in listed if one.modality == name])
    }


def flat(media: Media) -> dict[str, Any]:
    """Keyword of transformers -> value."""
    return {keyword: value for inputs in media.values() for keyword, value in inputs.flat().items()}


def flat_names() -> dict[str, str]:
    """Keyword of transformers -> name of the modality that it belongs to."""
    return {keyword: name for name, one in modalities().items() for keyword in one.inputs.flat_names.values()}


def media_apart(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that are flat names of media, and the others."""
    names = flat_names()
    named = {keyword: value for keyword, value in keywords.items() if keyword in names}
    return named, {keyword: value for keyword, value in keywords.items() if keyword not in names}


def from_flat(keywords: Mapping[str, Any]) -> Media:
    """The media that are given under flat names.

    Raises:
        InputError: if what is given of a modality does not fit together.
    """
    found = {name: one.inputs.from_flat(keywords) for name, one in modalities().items()}
    return {name: inputs for name, inputs in found.items() if inputs is not None}


def one_media(media: Media | None, named: Mapping[str, Any]) -> Media:
    """A batch's media, which came as values or under flat names.

    Raises:
        InputError: if they came both ways, or what is given of a modality does not fit together.
    """
    if media is None:
        return from_flat(named)
    if flat_ones := [name for name, value in named.items() if value is not None]:
        raise InputError(f"media are given as values, and {', '.join(flat_ones)} beside them: give one of the two")
    return media


def refuse_unknown(keywords: Mapping[str, Any], language_model: nn.Module) -> None:
    """Refuses data that nobody would take; switches such as `use_cache` are the LLM's own business.

    Args:
        keywords: what is left once media and the model's own arguments are taken out.
        language_model: what it takes by name, and what transformers' attention takes, may go on to it.

    Raises:
        InputError: naming the keyword and the flat names that are like it.
    """
    data = [name for name, value in keywords.items() if isinstance(value, (Tensor, np.ndarray, Mapping, list, tuple))]
    if not data:
        return
    taken = {*inspect.signature(language_model.forward).parameters, *TransformersKwargs.__annotations__}
    for name in data:
        if name not in taken:
            raise InputError(f"neither the LLM nor a modality takes {name!r}; {closest(name, flat_names())}")


def lists_flat_names(method: Method) -> Method:
    """Adds the flat names to a method's signature, where transformers' Trainer looks which columns a model wants."""
    signature = inspect.signature(method)
    *own, others = signature.parameters.values()
    assert others.kind is inspect.Parameter.VAR_KEYWORD
    flat_ones = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in flat_names()]
    method.__signature__ = signature.replace(parameters=[*own, *flat_ones, others])  # type: ignore[attr-defined]
    return method


def placeholders(holder: Any) -> dict[str, int]:
    """Field -> id, for every modality for which a configuration or a processor has a placeholder."""
    ids = {one.id_field: getattr(holder, one.id_field, None) for one in modalities().values()}
    return {field: token for field, token in ids.items() if token is not None}


def parts_of(config: MmllmConfig) -> dict[str, nn.Module]:
    """Name of a modality -> its own weights, for those that the configuration has a placeholder for."""
    fields = placeholders(config)
    built = {name: one.part(config) for name, one in modalities().items() if one.id_field in fields}
    return {name: part for name, part in built.items() if part is not None}
