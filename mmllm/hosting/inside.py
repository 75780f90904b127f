"""What a hosted model needs for stages inside its LLM: the pass of a shortened prompt, and options that do not work.

B rows, K positions of the shortened prompt, N prompt length
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mmllm.errors import ConfigError
from mmllm.hosting.carry import HostedPass, carrying, has_pass, pass_of_prompt
from mmllm.hosting.narrowing import HostedPrompt
from mmllm.interfaces import ContextPolicy, LlmStage
from mmllm.llm.cache import CACHE
from mmllm.llm.counters import ContextCounts


def pass_of(prompt: HostedPrompt, stages: Sequence[LlmStage]) -> HostedPass:
    """The pass of a shortened prompt. Tokens that are always kept, such as newlines, count as text."""
    index, present = prompt.index, prompt.present  # B K
    shape = (len(index), int(index.max()) + 1)
    frame, place = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    visual = torch.zeros(shape, dtype=torch.bool)
    frames = [0] * len(index)
    for medium in prompt.media:
        free = ~cast(Tensor, medium.fixed)
        places = cast(Tensor, medium.places)[free]
        visual[medium.row, places] = True
        place[medium.row, places] = cast(Tensor, medium.place_of)[free]
        frame[medium.row, places] = cast(Tensor, medium.frame_of)[free] + frames[medium.row]
        frames[medium.row] += medium.frames
    grids = {medium.grid for medium in prompt.media}
    grid = grids.pop() if len(grids) == 1 else None
    visual = visual.to(index.device).gather(1, index) & present
    own_place = place.to(index.device).gather(1, index)
    return pass_of_prompt(
        place=own_place if grid is not None else visual.long().cumsum(1) - 1,  # without a grid, their number
        frame=frame.to(index.device).gather(1, index),
        visual=visual,
        valid=present,
        grid=grid,
        stages=stages,
        labels=prompt.inputs.get("labels"),
    )


def with_pass(
    prompt: HostedPrompt,
    stages: Sequence[LlmStage],
    options: Mapping[str, Any],
    *,
    generates: bool,
    counts: ContextCounts | None = None,
) -> dict[str, Any]:
    """Options of `generate` or `forward` with the pass of a prompt: on the cache, or as an argument of `forward`.

    A later turn, whose cache was filled by a prompt with stages, needs none.

    Raises:
        ConfigError: for a cache of another kind.
    """
    options = dict(options)
    for name in ("past_key_values", "cache"):  # transformers 5.24 has the second name, and takes both
        if name != CACHE and options.get(name) is not None:
            options[CACHE] = options.pop(name)
    cache = options.get(CACHE)
    acts_on_text = any(isinstance(stage, ContextPolicy) for stage in stages)
    if has_pass(cache) or not (prompt.outputs or acts_on_text):
        return options
    current = pass_of(prompt, stages)
    current.counts = counts
    if generates or cache is not None:
        return {**options, CACHE: carrying(cache, current)}
    return {**options, "llm_pass": current}


def check_options(stages: Sequence[LlmStage], option: Any) -> None:
    """Refuses options of `generate` with which stages inside the LLM cannot work.

    Args:
        stages: the stages.
        option: function from the name of an option to its value.

    Raises:
        ConfigError: naming the option.
    """
    if (implementation := option("cache_implementation")) not in (None, "dynamic", "dynamic_full"):
        raise ConfigError(f"cache_implementation = {implementation!r}: stages inside the LLM need a dynamic cache")
    if option("use_cache") is False:
        raise ConfigError("use_cache = False: stages inside a hosted LLM get their prompt with the cache")
    if (chunk := option("prefill_chunk_size")) is not None:
        raise ConfigError(
            f"prefill_chunk_size = {chunk}: stages inside the LLM read a prompt in one pass: leave it out"
        )
    if not all(stage.takes_back for stage in stages) and option("prompt_lookup_num_tokens") is not None:
        raise ConfigError(
            "prompt_lookup_num_tokens: after a stage has removed keys, guessed tokens cannot be removed from the cache"
        )
