"""What an input will cost, stage by stage, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmllm import registry

Description = str | dict[str, Any]


def stage_costs(
    encoder: Description, reducers: Sequence[Description], visual_tokenizer: Description, path: Description, frames: int
) -> list[dict[str, Any]]:
    """Tokens after each stage for a video of so many frames; nothing is loaded or computed.

    Args:
        encoder, reducers, visual_tokenizer, path: the stages, as names with settings or as mappings.
        frames: sampled frames.

    Returns:
        One mapping a stage: `stage`, `tokens` of the whole video, and `detail`.
    """
    import torch

    with torch.device("meta"):
        tower = registry.build("encoder", encoder)
    per_frame = len(tower.index) if hasattr(tower, "index") else tower.grid[0] * tower.grid[1]
    rows = [
        {
            "stage": f"encoder {_name('encoder', encoder)}",
            "tokens": frames * per_frame,
            "detail": f"{frames} frames x {tower.grid[0]}x{tower.grid[1]} patches of width {tower.width}",
        }
    ]
    kept = per_frame
    for one in reducers:
        total = registry.build("reducer", one).kept_tokens(kept, frames)
        detail = f"at most, of {rows[-1]['tokens']:,}"
        rows.append({"stage": f"reducer {_name('reducer', one)}", "tokens": total, "detail": detail})
        kept = -(-total // frames)
    name = _name("tokenizer", visual_tokenizer)
    rows.append({"stage": f"tokenizer {name}", "tokens": rows[-1]["tokens"], "detail": "to the LLM's width"})
    blocks = registry.build("path", path).token_counts(frames, tower.grid, kept)
    detail = " + ".join(f"{count} {block}" for block, count in blocks.items())
    rows.append({"stage": f"path {_name('path', path)}", "tokens": sum(blocks.values()), "detail": detail})
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


def _name(kind: str, description: Description) -> str:
    return registry.name_of(kind, registry.config_of(kind, description))


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
