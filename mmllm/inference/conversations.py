"""The conversations of a model, whatever its layout is."""

from __future__ import annotations

from typing import Any

from mmllm.inference.answering import VideoQA
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_prompts import HostedPrompts
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.prompts import Prompts


def prompts_of(qa: VideoAnswering) -> Prompts[Any]:
    """Conversations with a model.

    Raises:
        TypeError: for a layout that has none.
    """
    if isinstance(qa, HostedVideoQA):
        return HostedPrompts(qa)
    if isinstance(qa, VideoQA):
        return OwnPrompts(qa)
    raise TypeError(f"{type(qa).__name__} has no conversations")
