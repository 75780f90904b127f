"""The small Python file in a saved model's folder, by which transformers loads the model with `trust_remote_code=True`.

The file imports mmllm and has no code of its own; where mmllm is not installed, it says how to install it.
"""

from __future__ import annotations

from pathlib import Path

MODULE = "modeling_mmllm"
"""Name of the file, without its suffix."""

STUB = '''\
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
'''

_MODEL = f"{MODULE}.MmllmForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.MmllmConfig",
    "AutoModel": _MODEL,
    "AutoModelForImageTextToText": _MODEL,
    "AutoModelForMultimodalLM": _MODEL,
    "AutoProcessor": f"{MODULE}.MmllmProcessor",
}
"""Auto class of transformers -> our class in the file."""


def write_stub(folder: str | Path) -> None:
    """Writes the file into a model's folder."""
    (Path(folder) / f"{MODULE}.py").write_text(STUB, encoding="utf-8")
