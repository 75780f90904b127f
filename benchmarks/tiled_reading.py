"""What HiRED saves the LLM's reading of one image in tiles, as LLaVA-NeXT has it, for `llm.py`.

An image of 672 x 672 pixels is five partitions of 576 tokens, and 48 ends of rows. HiRED shares a fifth of the tokens
out among the partitions by their attention. Its pass begins with the encoder's features: sharing out, choosing,
projecting, laying out, and the LLM's pass. `at most` is the LLM's own pass over the prompt that this gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config

from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.placeholders import place
from mmllm.tokens import Tiling, VisualTokens

BASE = "transformers, float32"
"""The row of a table that the others are compared with."""
HIRED = "hired:ratio=0.2"
TOWER = "clip:image_size=336,patch_size=14,width=64,layers=3,heads=2,mlp_width=128"
"""A small tower: what it costs is in other tables."""
TILING = Tiling(rows=2, cols=2, height=672, width=672)


def build(text: Qwen2Config, image: int, device: torch.device) -> Any:
    """LLaVA-NeXT's parts with random weights and HiRED. `image`: the placeholder's id."""
    torch.manual_seed(0)
    config = MmllmConfig(
        text_config=text, encoder=TOWER, visual_tokenizer="mlp", path="anyres", reducers=[HIRED], num_time_tokens=0,
        image_token_id=image,
    )  # fmt: skip
    return MmllmForConditionalGeneration(config).eval().requires_grad_(False).to(device)


def encoded(model: Any) -> VisualTokens:
    """Features of an image of random pixels, with the scores that HiRED needs."""
    pixels = torch.randn(1, TILING.partitions, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    return model.encode(pixels.to(model.device)).replace(tiling=(TILING,))


def prompt(model: Any, tokens: VisualTokens, ids: Tensor) -> dict[str, Any]:
    """What the LLM reads of an image and the text around its placeholder (int64, 1 L)."""
    placed = place(ids, torch.ones_like(ids), {model.config.image_token_id: model.arrange(tokens)})
    return model._decoder_inputs(placed)


def tiled_readers(
    text: Qwen2Config, ids: Tensor, image: int, device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Name of a row of `llm-reading` -> its pass over an image in tiles, and the positions that it reads.

    Args:
        text: sizes of the LLM.
        ids: int64, 1 L. The prompt, with one placeholder.
        image: its id.
        device: where.
    """
    model, ids = build(text, image, device), ids.to(device)
    tokens = encoded(model)
    whole = prompt(model.with_stages(reducers=[]), tokens, ids)
    short = prompt(model, tokens, ids)

    def read(given: dict[str, Any]) -> None:
        model.language_model(**given, use_cache=True, logits_to_keep=1)

    works: dict[str, Callable[[], None]] = {
        BASE: lambda: read(whole),
        f"{HIRED}, float32": lambda: read(prompt(model, tokens, ids)),
        "ideal": lambda: read(short),
    }
    lengths = {name: given["inputs_embeds"].shape[1] for name, given in zip(works, (whole, short, short), strict=True)}
    return works, lengths
