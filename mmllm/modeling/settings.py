"""A trained part with other settings and the same weights, such as another number of tokens."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from mmllm.modeling.tower import check_fit

AnyPart = TypeVar("AnyPart", bound=nn.Module)


def with_weights_of(trained: AnyPart, built: AnyPart) -> AnyPart:
    """The part `built`, which has other settings, with the weights of a trained one; its own may have no storage.

    Nothing is copied, and both parts can be used.

    Raises:
        CheckpointError: if the settings need weights of another shape.
    """
    check_fit(trained.state_dict(), built.state_dict(), what=f"{type(built).__name__} with other settings")
    built.__dict__.update({name: trained.__dict__[name] for name in ("_parameters", "_buffers", "_modules")})
    hook = getattr(trained, "_hf_hook", None)
    if hook is not None:  # accelerate moves the part's inputs, and keeps its weights elsewhere
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(built, hook)
    return built.train(trained.training)
