"""The memory that the settings name."""

from __future__ import annotations

from mmllm.inference.asking import VideoAnswering
from mmllm.watch.config import WatchConfig
from mmllm.watch.memory import SlidingWindow, StreamMemory
from mmllm.watch.running_cache import RunningCache


def memory_of(qa: VideoAnswering, config: WatchConfig) -> StreamMemory:
    """What is remembered of a stream, as the settings say.

    Raises:
        ConfigError: if it does not work with this model.
    """
    return RunningCache(qa, config) if config.memory == "cache" else SlidingWindow(qa, config)
