"""A tiny whole CLIP with random weights in a folder, as transformers saves one."""

import string

import torch

ENCODER = "clip:image_size=16,patch_size=4,width=16,layers=4,heads=2,mlp_width=32"
"""Its vision tower, as an encoder of ours."""
PIECE = 12
"""Ids of a piece of a text."""


def save_small_clip(folder):
    """Writes model and tokenizer into a folder, and returns the model."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [*string.ascii_lowercase, *"?.,0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    torch.manual_seed(5)
    begin, end = len(words) - 2, len(words) - 1
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(words), "max_position_embeddings": PIECE, "projection_dim": 10, "bos_token_id": begin,
            "eos_token_id": end, "pad_token_id": end}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 4, "projection_dim": 10}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).eval()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return model
