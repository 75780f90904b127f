"""What a video will cost a hosted model, by its processor and its configuration: no weights are needed.

T frames
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from mmllm.hosting.prompting import Prompting
from mmllm.inference.costs import cache_bytes, keys_held
from mmllm.interfaces import LlmStage, TokenReducer
from mmllm.tokens import VideoClip

SIZE = (360, 640)
"""Height and width of the frames, if no video says another."""


def hosted_costs(
    config: Any,
    prompting: Prompting,
    reducers: Sequence[TokenReducer],
    frames: int,
    bytes_per_number: int,
    *,
    context: Sequence[Any] = (),
    size: tuple[int, int] = SIZE,
    duration_s: float = 60.0,
) -> tuple[list[dict[str, Any]], int]:
    """Tokens after each stage for a video, and bytes of the LLM's cache for what remains.

    The model's own processor prepares black frames of that size, and what it writes is counted.

    Args:
        config: of the model.
        prompting: its processor.
        reducers: in order.
        frames: T.
        bytes_per_number: of the cache.
        context: policies of the cache; the text is counted as kept.
        size: height and width of the frames.
        duration_s: length of the video.

    Raises:
        InputError: if the processor cannot take such frames.
    """
    pixels = np.zeros((frames, *size, 3), dtype=np.uint8)
    clip = VideoClip(frames=pixels, times_s=np.linspace(0, duration_s, frames, endpoint=False), duration_s=duration_s)
    inputs = prompting.prepare(clip).inputs
    media = prompting.family.media(config, inputs)
    total = sum(medium.count for medium in media)
    layouts = dict.fromkeys("x".join(map(str, medium.grid)) for medium in media if medium.grid)
    detail = f"{frames} frames of {size[1]} x {size[0]}"
    detail += f", {sum(medium.frames for medium in media)} grids of {' and '.join(layouts)}" if layouts else ""
    rows: list[dict[str, Any]] = [{"stage": f"tower {config.model_type}", "tokens": total, "detail": detail}]
    fixed = sum(int(cast(Tensor, medium.fixed).sum()) for medium in media)
    grids = sum(medium.frames for medium in media)
    kept = -(-(total - fixed) // grids)  # tokens of a grid
    for reducer in reducers:
        left = reducer.kept_tokens(kept, grids)
        inside = isinstance(reducer, LlmStage)
        detail = "fewer from layer to layer of the LLM" if inside else f"at most, of {rows[-1]['tokens']:,}"
        rows.append(
            {
                "stage": f"reducer {reducer.registered_name}",
                "tokens": min(left + fixed, rows[-1]["tokens"]),
                "detail": detail,
            }
        )
        kept = -(-left // grids)
    remaining = rows[-1]["tokens"]
    text = int(inputs["input_ids"].shape[1]) - total
    detail = f"with {text} of text: the template"
    if prompting.family.time_text:
        detail += f" and times such as {prompting.family.time_text}"
    rows.append({"stage": "prompt", "tokens": remaining + text, "detail": detail})
    held = keys_held(context, remaining) + text
    return rows, cache_bytes(config.get_text_config(), held, bytes_per_number)
