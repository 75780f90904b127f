"""What an input will cost at each stage, computed before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmllm import registry
from mmllm.interfaces import Encoder, LlmStage, Part, TokenReducer
from mmllm.pruning.needs import by_place
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
        width: width of the LLM. Some parts need it to be built; no count depends on it.
        others: further slots. They change no count.

    Returns:
        One mapping for each stage: `stage`, `tokens` of the whole video, and `detail`; for a path with tokens beside
        the sequence also `beside`, their number.
    """
    stages = {
        "encoder": encoder, "reducers": reducers, "visual_tokenizer": visual_tokenizer, "path": path, **others
    }  # fmt: skip
    stages.pop("decoder_stages", None)
    with torch.device("meta"):
        parts = build(stages, width)
    built_encoder, grid = parts["encoder"], parts["encoder"].grid
    rows = [
        {
            "stage": f"encoder {built_encoder.registered_name}",
            "tokens": frames * built_encoder.tokens_per_frame,
            "detail": f"{frames} frames x {_layout(built_encoder)} of width {built_encoder.width}"
            + _again(built_encoder),
        }
    ]
    kept = built_encoder.tokens_per_frame  # tokens of one frame, on average and rounded up
    in_front, behind = by_place(parts["reducers"])
    for reducer in in_front:
        rows.append(_reduced(reducer, rows[-1]["tokens"], kept, frames))
        kept, grid = -(-rows[-1]["tokens"] // frames), reducer.grid_after(grid)
    projector = parts["visual_tokenizer"]
    count, grid_after = projector.token_count(kept), projector.grid_after(grid)
    total = rows[-1]["tokens"] if (count, grid_after) == (kept, grid) else frames * count
    kept, grid = count, grid_after
    rows.append(
        {
            "stage": f"tokenizer {projector.registered_name}",
            "tokens": total,
            "detail": f"to the LLM's width{_again(projector)}",
        }
    )
    for reducer in behind:
        rows.append(_reduced(reducer, rows[-1]["tokens"], kept, frames))
        kept, grid = -(-rows[-1]["tokens"] // frames), reducer.grid_after(grid)
    blocks = parts["path"].token_counts(frames, grid, kept)
    detail = " + ".join(f"{count} {block}" for block, count in blocks.items())
    beside = parts["path"].beside_counts(frames, grid, kept)
    detail += "".join(f"; {count:,} {name} beside the sequence" for name, count in beside.items())
    detail += _again(parts["path"])
    rows.append({"stage": f"path {parts['path'].registered_name}", "tokens": sum(blocks.values()), "detail": detail})
    if beside:
        rows[-1]["beside"] = sum(beside.values())
    if (audio := parts["audio_projector"]) is not None:
        count = frames * audio.tokens_per_frame
        detail = f"{count} of sound, {audio.tokens_per_frame} after each frame"
        rows.append({"stage": f"audio {audio.registered_name}", "tokens": rows[-1]["tokens"] + count, "detail": detail})
    return rows


def _reduced(reducer: TokenReducer, before: int, tokens_per_frame: int, frames: int) -> dict[str, Any]:
    """The row of a reducer."""
    in_llm = isinstance(reducer, LlmStage)
    detail = "fewer from layer to layer of the LLM" if in_llm else f"at most, of {before:,}"
    total = reducer.kept_tokens(tokens_per_frame, frames)
    return {"stage": f"reducer {reducer.registered_name}", "tokens": total, "detail": detail + _again(reducer)}


def _again(part: Part) -> str:
    """What is said of a part that reads questions: everything from there on is done for each of them."""
    return ", again for each question" if part.reads_question else ""


def _layout(encoder: Encoder) -> str:
    """The tokens of a frame, such as `24x24 patches`."""
    if encoder.grid is None:
        return f"{encoder.tokens_per_frame} 1D tokens"
    return f"{encoder.grid[0]}x{encoder.grid[1]} patches"


def time_costs(processor: Any, visual_tokens: int, frames: int, duration_s: float) -> list[dict[str, Any]]:
    """A row like those of `stage_costs`, if the model reads a time before each frame; else no row."""
    text = processor.frame_text([[duration_s * i / max(frames - 1, 1) for i in range(frames)]])
    if text is None:
        return []
    text_tokens = int((text >= 0).sum())  # padding is negative
    detail = f"{text_tokens} for the time before each frame, and again where slow tokens follow"
    name = processor.time["name"]
    return [{"stage": f"time {name}", "tokens": visual_tokens + text_tokens, "detail": detail}]


def cache_bytes(text_config: Any, tokens: int, bytes_per_number: int) -> int:
    """Bytes of the LLM's key-value cache for so many positions."""
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return 2 * text_config.num_hidden_layers * heads * head_width * tokens * bytes_per_number


def keys_held(context: Sequence[Description], visual: int) -> int:
    """How many keys of so many visual tokens a head still holds under policies, once an answer is written."""
    policies = [registry.build("context", policy) for policy in context]
    return min((policy.keys_held(visual) for policy in policies), default=visual)


def prefill_bytes(text_config: Any, positions: int, bytes_per_number: int) -> int:
    """Most bytes that the LLM's pass over a prompt of so many positions holds beside its weights and its input.

    That is in the MLP of the last layer: the cache of all layers, the rotary embeddings, the layer's input, the
    residual and its norm, and in the MLP the gate, the other factor and their product. No attention map is held.
    """
    head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    live = 3 * text_config.hidden_size + 3 * text_config.intermediate_size + 2 * head_width
    return cache_bytes(text_config, positions, bytes_per_number) + positions * live * bytes_per_number


def prefill_flops(text_config: Any, positions: int | Sequence[int], *, causal: bool = False) -> float:
    """Floating point operations of the LLM's pass over a prompt of so many positions, with one position of logits.

    Only matrix products count, a multiply-add as two operations.

    Args:
        text_config: configuration of the LLM.
        positions: of the prompt; or for each layer the number on which it works, if stages inside the LLM drop some.
        causal: count a position's attention to itself and those before it, as kernels do that skip the masked half.
            Else attention counts in full.
    """
    width, layers = text_config.hidden_size, text_config.num_hidden_layers
    heads = text_config.num_attention_heads
    key_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_width = getattr(text_config, "head_dim", None) or width // heads
    projections = 2 * width * heads * head_width + 2 * width * key_heads * head_width
    weights = projections + 3 * width * text_config.intermediate_size
    total = 0.0
    for count in positions if isinstance(positions, Sequence) else [positions] * layers:
        attended = (count + 1) / 2 if causal else count  # by a position, on average
        total += count * (weights + 2 * attended * heads * head_width)
    return 2.0 * (total + width * text_config.vocab_size)


def costs_inside(decoder_stages: Sequence[Description], text_config: Any, beside: int) -> tuple[float, int]:
    """Operations and numbers in the cache that stages inside the LLM add to a video without a text.

    Args:
        decoder_stages: the stages.
        text_config: configuration of the LLM.
        beside: tokens beside the sequence.
    """
    with torch.device("meta"):
        parts = build({"decoder_stages": decoder_stages}, text_config.hidden_size, decoder=text_config)[
            "decoder_stages"
        ]
    return sum(part.prompt_flops(beside, 0) for part in parts), sum(part.cached_numbers(beside) for part in parts)
