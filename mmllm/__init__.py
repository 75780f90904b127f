"""mmllm: efficient video and vision LLMs that can say when something happens.

Each public name is imported when it is first used. So `import mmllm` takes no time.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOME = {
    "Answer": "mmllm.times.answers",
    "Span": "mmllm.times.answers",
    "TimeTokens": "mmllm.times.vocabulary",
    "VideoClip": "mmllm.tokens",
    "VideoQA": "mmllm.inference.answering",
    "VisualSequence": "mmllm.tokens",
    "VisualTokens": "mmllm.tokens",
    "MmllmConfig": "mmllm.config",
    "MmllmForConditionalGeneration": "mmllm.model",
    "MmllmProcessor": "mmllm.processor",
    "host": "mmllm.hosting.model",
    "open_video": "mmllm.video.opening",
    "register": "mmllm.registry",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mmllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
