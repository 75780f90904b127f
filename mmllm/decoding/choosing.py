"""A decoding method from its name, and the options of `generate` with which a model answers through it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.interfaces import Decoding


def decoding_of(decoding: Any) -> Decoding:
    """The method that text such as `token-recycling:tree=80`, a mapping or a configuration describes.

    A method itself is returned as it is, and so keeps what it has learned of earlier texts.

    Raises:
        ConfigError: for an unknown name or setting.
    """
    if isinstance(decoding, Decoding):
        return decoding
    method: Decoding = registry.build("decoding", decoding)
    return method


def options_with(
    options: Mapping[str, Any], qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None
) -> dict[str, Any]:
    """Options of `generate` with those of the `decoding` among them, if there is one.

    Args:
        options: of transformers' `generate`, and `decoding`: a method, its description, or None.
        qa: the model that is asked.
        encoded: the video.
        input_ids: int64, Q L, with the video's placeholder.
        attention_mask: Q L; None for no padding.

    Raises:
        ConfigError: if the method does not work with this model, or beside these options.
    """
    options = dict(options)
    if (decoding := options.pop("decoding", None)) is None:
        return options
    method = decoding_of(decoding)
    if options.get("custom_generate") is not None:
        name = method.registered_name
        raise ConfigError(f"decoding {name} and custom_generate both write the text: give one of them")
    require_model(method, qa)
    if method.samples and not options.get("do_sample"):
        options |= {"do_sample": True, "temperature": method.config.temperature, "top_k": 0, "top_p": 1.0}
    options |= method.options(qa, encoded, input_ids, attention_mask)
    if options.get("streamer") is not None and callable(options.get("custom_generate")):
        # transformers hands a streamer to its own loops only
        options["custom_generate"] = functools.partial(options["custom_generate"], streamer=options["streamer"])
    return options


def require_model(method: Decoding, qa: Any) -> None:
    """Refuses a method that does not work with a model.

    Raises:
        ConfigError: naming what does not fit.
    """
    name = method.registered_name
    if stages := getattr(qa.model, "stages", None) or getattr(qa.model, "llm_stages", None):
        inside = ", ".join(stage.registered_name for stage in stages)
        raise ConfigError(f"decoding {name}: {inside} works inside the LLM, where one mask cannot fit all layers")
    if qa.settings and not method.hosted:
        raise ConfigError(f"decoding {name} does not work with hosted models of transformers")
