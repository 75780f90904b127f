"""Which models an engine can run whole, with their visual half inside it; the others are refused by name.

`mmllm serve --engine` serves all of them: there only the LLM runs in the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmllm.config import MmllmConfig
from mmllm.engines.visual_counts import VisualCounts
from mmllm.errors import ConfigError
from mmllm.interfaces import llm_stages
from mmllm.modeling.vision import listed
from mmllm.pruning.needs import require_all_fit

_INSTEAD = "serve it with `mmllm serve --engine`, which sends the engine embeddings"


def require_servable(config: MmllmConfig, processor: Any) -> VisualCounts:
    """Refuses a model of which an engine could not run something as it was trained.

    Args:
        config: of the model.
        processor: its `MmllmProcessor`.

    Returns:
        The counts of its visual tokens.

    Raises:
        ConfigError: naming the first part or setting that cannot be honoured.
    """
    counts = VisualCounts(config)
    for problem in _problems(config, processor, counts.parts):
        raise ConfigError(f"{problem}: {_INSTEAD}")
    require_all_fit(counts.parts["reducers"], (counts.parts["encoder"], counts.parts["image_encoder"]))
    of_video = counts.of_video(processor.num_frames)
    counts.of_image()
    if not isinstance(of_video, list) and processor.frame_text([[0.0]]) is not None:
        raise ConfigError(
            f"time {processor.time['name']!r} writes text before each frame, and with these reducers what a video "
            f"shows decides where a frame's tokens begin: {_INSTEAD}"
        )
    return counts


def _problems(config: MmllmConfig, processor: Any, parts: dict[str, Any]) -> Iterator[str]:
    """What cannot be honoured besides counts."""
    everything = [part for filled in parts.values() for part in listed(filled)]
    if inside := [stage.registered_name for stage in llm_stages(everything)]:
        yield f"{', '.join(inside)} works inside the LLM, where an engine cannot run it"
    if (path := parts["path"].registered_name) != "plain":
        yield f"path {path!r} lays tokens out in its own way, and only the plain path runs inside an engine"
    if parts["audio_encoder"] is not None:
        yield f"audio_encoder {parts['audio_encoder'].registered_name!r} hears, and an engine gives no sound"
    if config.num_time_tokens or processor.time_tokens is not None:
        yield (
            "the model answers with time tokens, and nothing in an engine's answer says how long the video is that "
            "they divide"
        )
    if asking := [part.registered_name for part in everything if part.reads_question]:
        yield f"{', '.join(asking)} reads the question, and an engine keeps a video's tokens for all questions"
    if processor.pinpoints is not None:
        yield "the model cuts images into tiles (pinpoints)"
    if processor.frame_sizes:
        yield f"visual_tokenizer {parts['visual_tokenizer'].registered_name!r} leaves the padding of frames out"
