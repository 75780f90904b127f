"""mmllm: efficient video and vision LLMs that can say when something happens.

The public names below are imported when they are first used, so that `import mmllm` stays instant.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Answer": "mmllm.time_tokens",
    "Span": "mmllm.time_tokens",
    "TimeTokens": "mmllm.time_tokens",
    "VideoClip": "mmllm.tokens",
    "VisualSequence": "mmllm.tokens",
    "VisualTokens": "mmllm.tokens",
    "MmllmConfig": "mmllm.config",
    "MmllmForConditionalGeneration": "mmllm.model",
    "MmllmProcessor": "mmllm.processor",
    "open_video": "mmllm.datasets.video",
    "register": "mmllm.registry",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
