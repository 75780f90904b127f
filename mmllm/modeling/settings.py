"""A trained part with other settings and the same weights, such as another number of tokens."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from mmllm import registry
from mmllm.modeling.tower import check_fit

AnyPart = TypeVar("AnyPart", bound=nn.Module)


def resettled(part: AnyPart, kind: str, description: Any, **context: Any) -> AnyPart:
    """The part that a description gives, with the weights of a trained one. Nothing is copied; both can be used.

    Args:
        part: the trained part.
        kind: its kind in `mmllm.registry`.
        description: as `mmllm.registry.build` takes it; only `changeable_settings` may differ.
        context: arguments of the constructor.

    Raises:
        ConfigError, InputError: if the constructor refuses the settings.
        CheckpointError: if the settings need weights of another shape.
    """
    with torch.device("meta"):  # the constructor checks the settings; its weights would be thrown away
        built: AnyPart = registry.build(kind, description, **context)
    check_fit(part.state_dict(), built.state_dict(), what=f"{kind} {description}")
    shared = ("_parameters", "_buffers", "_modules")
    built.__dict__.update({name: part.__dict__[name] for name in shared})
    hook = getattr(part, "_hf_hook", None)
    if hook is not None:  # accelerate moves the part's inputs, and keeps its weights elsewhere
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(built, hook)
    return built.train(part.training)
