"""The entry point `mmllm` of vLLM's group `vllm.general_plugins`: vLLM learns of our models, and of our video reader.

vLLM calls `register` in each of its processes, in some of them more than once. Nothing of vLLM is imported before.
"""

from __future__ import annotations

import logging

LOWEST = "0.32"
"""vLLM before had another interface of processors."""
ARCHITECTURE = "MmllmForConditionalGeneration"
MODEL = "mmllm.engines.vllm_model:VllmModel"
"""Imported once a model of ours is served."""
VIDEO_BACKEND = "mmllm"
"""Name of our reader among vLLM's video backends."""

_log = logging.getLogger(__name__)


def register() -> None:
    """Tells vLLM of our architecture, our configuration's class and our video reader; may be called again.

    With an older vLLM it says so and registers nothing, so that other models are served as without mmllm.
    """
    import vllm
    from packaging.version import Version

    if Version(vllm.__version__).release < Version(LOWEST).release:
        _log.warning("mmllm's models need vLLM %s or newer, and this is %s", LOWEST, vllm.__version__)
        return
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    from mmllm.config import MmllmConfig
    from mmllm.engines.vllm_videos import VideoFrames

    AutoConfig.register(MmllmConfig.model_type, MmllmConfig, exist_ok=True)
    VIDEO_LOADER_REGISTRY.register(VIDEO_BACKEND)(VideoFrames)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, MODEL)
