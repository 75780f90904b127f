"""Loads this model's classes from the package mmllm."""

try:
    from mmllm.config import MmllmConfig
    from mmllm.model import MmllmForConditionalGeneration
    from mmllm.processor import MmllmProcessor
except ModuleNotFoundError as missing:
    if missing.name != "mmllm":
        raise
    raise ImportError(
        "this model needs the Python package mmllm: run `pip install .` in a clone of mmllm's repository"
    ) from None

__all__ = ["MmllmConfig", "MmllmForConditionalGeneration", "MmllmProcessor"]
