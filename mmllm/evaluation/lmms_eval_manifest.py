"""How lmms-eval finds our models: the entry point `mmllm` of its group `lmms_eval.models`."""

from __future__ import annotations

from typing import Any

CLASS = "mmllm.evaluation.lmms_eval_model.MmllmChat"


def manifest() -> Any:
    """What lmms-eval registers: the class is imported once `--model mmllm` asks for it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmllm", chat_class_path=CLASS)
