"""Folders with small networks of random weights, in the layouts of transformers and timm."""

from pathlib import Path

import torch

DINOV2 = "dinov2:image_size=24,patch_size=4,width=32,layers=2,heads=4,mlp_width=128,gated=false"
"""The encoder of mmllm that the weights of `dinov2` fit."""


def dinov2(folder: Path) -> str:
    """Saves a small DINOv2 of transformers and returns its folder."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=4, layerscale_value=1.0
    )
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def resnet(folder: Path) -> str:
    """Saves timm's smallest ResNet and returns its folder."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet"), str(folder), safe_serialization=True)
    return str(folder)
