"""transformers' continuous batching, which runs an LLM in a thread of its own: each step has one token of every answer.

New prompts join between two steps; up to `step_tokens` of them are read in each. What prompts share at their beginning
is read once: a video, whose tokens have the same ids in every question about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from mmllm.errors import ConfigError
from mmllm.llm.virtual_ids import VirtualIds, with_virtual_ids

PAGE = 16
"""Positions of a page of the cache: prompts share whole pages only."""
_SETTINGS = (
    "page_size", "num_blocks", "max_batch_tokens", "max_blocks_per_request", "use_cuda_graph", "use_async_batching",
    "auto_switch_to_flash",
)  # fmt: skip
_NAMES = ("add_request", "get_result", "cancel_request", "start", "stop", "is_running")


@dataclass(frozen=True)
class Said:
    """What has come of an answer."""

    name: str
    """Of the request."""
    ids: Sequence[int]
    """All ids so far."""
    finished: bool
    failed: bool


def require_transformers() -> None:
    """Refuses versions of transformers whose continuous batching has another interface.

    Raises:
        ConfigError: with what is missing.
    """
    try:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig
        from transformers.generation.continuous_batching import ContinuousBatchingManager
    except ImportError as problem:
        missing = [str(problem)]
    else:
        fields = ContinuousBatchingConfig.__dataclass_fields__
        missing = [name for name in _SETTINGS if name not in fields]
        missing += [name for name in _NAMES if not hasattr(ContinuousBatchingManager, name)]
    if missing:
        raise ConfigError(
            f"continuous batching is another one in transformers {transformers.__version__} ({', '.join(missing)} is "
            "missing): leave --batching out, or install a version between 5.19 and 5.23"
        )


class ContinuousLoop:
    """An LLM whose answers are written together; they may begin and end at any time.

    Args:
        llm: of transformers, with its head.
        first_id: above all ids of words.
        positions: that the cache holds, of all answers together.
        step_tokens: of prompts that are read in a step.
    """

    def __init__(self, llm: Any, *, first_id: int, positions: int, step_tokens: int) -> None:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        self.ids = VirtualIds(first_id)
        settings = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=-(-positions // PAGE),
            max_batch_tokens=step_tokens,
            max_blocks_per_request=0,  # a way of flash attention's
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,
        )
        with torch.no_grad():
            greedy = GenerationConfig(do_sample=False, eos_token_id=-1)
            self._manager = with_virtual_ids(llm, self.ids).init_continuous_batching(
                generation_config=greedy, continuous_batching_config=settings
            )
        self._manager.start()
        self._numbers = itertools.count(1)

    @property
    def alive(self) -> bool:
        """Whether the LLM runs."""
        return self._manager.is_running()

    def begin(self, ids: list[int], *, most_tokens: int, ends: Sequence[int]) -> str:
        """Begins an answer to a prompt, and gives its name.

        Args:
            ids: of the prompt; visual tokens have those of `self.ids`.
            most_tokens: of the answer.
            ends: ids that end it.
        """
        name = f"answer-{next(self._numbers)}"
        self._manager.add_request(
            ids, request_id=name, max_new_tokens=most_tokens, streaming=True, eos_token_id=list(ends)
        )
        return name

    def next(self, wait_s: float) -> Said | None:
        """What has come next of any answer; None if nothing comes within that time."""
        output = self._manager.get_result(timeout=wait_s)
        if output is None:
            return None
        return Said(output.request_id, output.generated_tokens, output.is_finished(), output.error is not None)

    def end(self, name: str) -> None:
        """Ends an answer; nothing more comes of it."""
        self._manager.cancel_request(name)

    def close(self) -> None:
        """Ends all answers, and the thread."""
        self._manager.stop(block=True, hard_stop=True)
