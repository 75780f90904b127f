"""What an input will cost, stage by stage, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmllm.interfaces import LlmStage
from mmllm.stages import Description, build


def stage_costs(
    encoder: Description,
    reducers: Sequence[Description],
    visual_tokenizer: Description,
    path: Description,
    frames: int,
    *,
    width: int = 1,
    **others: Any,
) -> list[dict[str, Any]]:
    """Tokens after each stage for a video of so many frames; nothing is loaded or computed.

    Args:
        encoder, reducers, visual_tokenizer, path: the stages, as names with settings or as mappings.
        frames: sampled frames.
        width: the LLM's, for parts that are built by it; no count depends on it.
        others: further slots, which change no count.

    Returns:
        One mapping a stage: `stage`, `tokens` of the whole video, and `detail`.
    """
    stages = {
        "encoder": encoder, "reducers": reducers, "visual_tokenizer": visual_tokenizer, "path": path, **others
    }  # fmt: skip
    with torch.device("meta"):
        parts = build(stages, width)
    tower, grid = parts["encoder"], parts["encoder"].grid
    rows = [
        {
            "stage": f"encoder {tower.registered_name}",
            "tokens": frames * tower.tokens_per_frame,
            "detail": f"{frames} frames x {grid[0]}x{grid[1]} patches of width {tower.width}",
        }
    ]
    kept = tower.tokens_per_frame
    for reducer in parts["reducers"]:
        total = reducer.kept_tokens(kept, frames)
        inside = isinstance(reducer, LlmStage)
        detail = "fewer from layer to layer of the LLM" if inside else f"at most, of {rows[-1]['tokens']:,}"
        rows.append({"stage": f"reducer {reducer.registered_name}", "tokens": total, "detail": detail})
        kept, grid = -(-total // frames), reducer.grid_after(grid)
    projector = parts["visual_tokenizer"]
    count, grid_after = projector.token_count(kept), projector.grid_after(grid)
    total = rows[-1]["tokens"] if (count, grid_after) == (kept, grid) else frames * count
    kept, grid = count, grid_after
    rows.append({"stage": f"tokenizer {projector.registered_name}", "tokens": total, "detail": "to the LLM's width"})
    blocks = parts["path"].token_counts(frames, grid, kept)
    detail = " + ".join(f"{count} {block}" for block, count in blocks.items())
    rows.append({"stage": f"path {parts['path'].registered_name}", "tokens": sum(blocks.values()), "detail": detail})
    return rows


def time_costs(processor: Any, visual_tokens: int, frames: int, duration_s: float) -> list[dict[str, Any]]:
    """The row of a model that reads a time before each frame; none of others. Like `stage_costs`."""
    text = processor.frame_text([[duration_s * i / max(frames - 1, 1) for i in range(frames)]])
    if text is None:
        return []
    written = int((text >= 0).sum())
    detail = f"{written} for the time before each frame, and again where slow tokens follow"
    name = processor.time["name"]
    return [{"stage": f"time {name}", "tokens": visual_tokens + written, "detail": detail}]


def cache_bytes(text_config: Any, tokens: int, bytes_per_number: int) -> int:
    """Bytes of the LLM's key-value cache for so many positions."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return 2 * text_config.num_hidden_layers * heads * head * tokens * bytes_per_number


def prefill_flops(text_config: Any, positions: int) -> float:
    """Floating point operations of the LLM's pass over a prompt of so many positions, the head on the last one only.

    Matrix products are counted, a multiply-add as two; attention in full, as kernels without a causal shortcut do it.
    """
    width, layers = text_config.hidden_size, text_config.num_hidden_layers
    heads = text_config.num_attention_heads
    key_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head = getattr(text_config, "head_dim", None) or width // heads
    weights = 2 * width * heads * head + 2 * width * key_heads * head + 3 * width * text_config.intermediate_size
    attention = 2 * positions * heads * head
    return 2.0 * (layers * positions * (weights + attention) + width * text_config.vocab_size)
