"""One case of each hosted family, with images and videos where it takes both: all cases would take minutes."""

from __future__ import annotations

from typing import Any

from tiny_models import some

_CHOSEN = (
    "qwen2_vl", "qwen2_5_vl_mixed", "qwen3_vl_mixed", "qwen3_5", "internvl", "llava_onevision_mixed", "smolvlm",
    "video_llama_3_mixed", "perception_lm", "gemma3", "glm4v", "llava", "llava_next", "llava_next_video_mixed",
    "video_llava_mixed", "fast_vlm",
)  # fmt: skip


def one_of_each(*families: str) -> list[Any]:
    """A case of each of these families, or of all, as parameters of a test."""
    return [param for param in some(*families) if param.values[0].name in _CHOSEN]
