"""Small models that many tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def decoder_configs():
    """Name -> a function that makes the configuration of a tiny decoder of that family."""
    from transformers import Gemma2Config, GemmaConfig, LlamaConfig, Qwen2Config

    def make(family, **fields):
        return family(
            **{
                "vocab_size": 120,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 512,
                "initializer_range": 0.3,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **fields,
            }
        )

    families = {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma": GemmaConfig, "gemma2": Gemma2Config}
    return {name: lambda family=family, **fields: make(family, **fields) for name, family in families.items()}


TINY_ENCODER = "tiny:width=16,heads=2,channels=8+8+8"


@pytest.fixture(scope="session")
def make_model(decoder_configs):
    """Makes a tiny model in evaluation mode; keyword arguments go to `MmllmConfig`."""
    from mmllm.config import MmllmConfig
    from mmllm.model import MmllmForConditionalGeneration

    def make(family: str = "llama", decoder: dict | None = None, **fields):
        torch.manual_seed(0)
        config = {
            "text_config": decoder_configs[family](**(decoder or {})),
            "encoder": TINY_ENCODER,
            "path": "slowfast:image_frames=4",
            "num_time_tokens": 10,
            "time_token_ids": list(range(100, 110)),
            "video_token_id": 200,
            "image_token_id": 201,
        }
        return MmllmForConditionalGeneration(MmllmConfig(**{**config, **fields})).eval()

    return make
