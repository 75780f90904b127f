"""BEATs: a transformer over 16 x 16 patches of mel energies (Chen et al., ICML 2023), as TDC hears videos.

    sound -> 128 mel bands every 10 ms -> patches, 8 for each 160 ms, time first -> transformer -> 50 tokens a second

Positions enter twice: by a convolution over the tokens, and in each attention by a bias of the distance, which a gate
of the query scales. The norms come after the residual sums, which deep norm weighs.

F windows, S samples, N tokens, H heads, D width of a head, C width of patches, E width
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from mmllm.encoders.audio.beats_names import named_as_ours
from mmllm.errors import CheckpointError
from mmllm.fields import require
from mmllm.interfaces import AudioEncoder
from mmllm.modeling.tower import load_strictly
from mmllm.preprocessing.fbank import FRAME, SHIFT, fbank
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """The defaults are those of BEATs iter3+."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    patch_width: int = 512
    """Width of patches before they are projected to `width`."""
    bands: int = 128
    """Mel bands."""
    position_kernel: int = 128
    """Tokens that the convolution of positions sees."""
    position_groups: int = 16
    buckets: int = 320
    """Numbers of distances in the attention's bias."""
    max_distance: int = 800
    """Tokens; larger distances share a bucket."""
    mean: float = 15.41663
    spread: float = 6.55582
    """Mean and standard deviation of mel energies; they are scaled to a standard deviation of one half."""

    def __post_init__(self) -> None:
        sizes = ("width", "layers", "heads", "mlp_width", "patch_size", "patch_width", "position_kernel", "spread")
        for name in sizes:
            require(getattr(self, name) > 0, self, name, "positive")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        groups = self.position_groups
        require(groups > 0 and self.width % groups == 0, self, "position_groups", f"a divisor of width = {self.width}")
        require(self.bands >= self.patch_size, self, "bands", f"at least patch_size = {self.patch_size}")
        require(self.buckets >= 4 and self.buckets % 4 == 0, self, "buckets", "divisible by 4")
        require(self.max_distance > self.buckets // 4, self, "max_distance", f"above buckets / 4 = {self.buckets // 4}")


@register("audio_encoder", "beats", config=BeatsConfig)
class BeatsEncoder(AudioEncoder):
    """BEATs: patches of mel energies, 50 tokens a second."""

    tokens_per_s = 50
    window_s = 10

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(1, config.patch_width, kernel_size=size, stride=size, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_width)
        same = config.patch_width == config.width
        self.post_extract_proj = None if same else nn.Linear(config.patch_width, config.width)
        self.encoder = _Transformer(config)

    def forward(self, waveform: Tensor) -> Tensor:
        """Features F N E of sound F S: eight tokens for each 160 ms, lowest bands first."""
        # the last patch of time needs 16 whole frames; a sound that is shorter than one is filled up with silence
        least = FRAME + (self.config.patch_size - 1) * SHIFT
        energies = fbank(functional.pad(waveform, (0, max(0, least - waveform.shape[1]))), self.config.bands)
        energies = (energies - self.config.mean) / (2 * self.config.spread)
        patches = self.patch_embedding(energies.unsqueeze(1).to(self.layer_norm.weight.dtype))
        tokens = self.layer_norm(rearrange(patches, "f c t m -> f (t m) c"))
        return self.encoder(tokens if self.post_extract_proj is None else self.post_extract_proj(tokens))


class _Transformer(nn.Module):
    """Positions by a convolution, then the layers, which share one table of distances."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        kernel = config.position_kernel
        groups = config.position_groups
        self.pos_conv = nn.Conv1d(config.width, config.width, kernel, padding=kernel // 2, groups=groups)
        self.layer_norm = nn.LayerNorm(config.width)
        self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        beta = (8 * config.layers) ** -0.25
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            layer.draw(beta)

    def forward(self, tokens: Tensor) -> Tensor:
        """F N E to F N E."""
        moved = self.pos_conv(tokens.transpose(1, 2))[..., : tokens.shape[1]]  # an even kernel gives one more
        hidden = self.layer_norm(tokens + functional.gelu(moved).transpose(1, 2))
        distance = rearrange(self.relative_attention_bias(self._buckets(tokens)), "q k h -> h q k")
        for layer in self.layers:
            hidden = layer(hidden, distance)
        return hidden

    def _buckets(self, tokens: Tensor) -> Tensor:
        """int64, N N: the bucket of each distance from a query to a key, as in T5."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        distance = place.unsqueeze(0) - place.unsqueeze(1)
        half = self.config.buckets // 2
        exact = half // 2
        far = distance.abs().clamp(min=1).float() / exact
        rising = exact + (far.log() / math.log(self.config.max_distance / exact) * (half - exact)).long()
        bucket = distance.abs().where(distance.abs() < exact, rising.clamp(max=half - 1))
        return bucket + half * (distance > 0)


class _Layer(nn.Module):
    """Attention and MLP, each followed by the weighted residual sum and a norm."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.residual = (2 * config.layers) ** 0.25
        self.self_attn = _GatedAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def draw(self, beta: float) -> None:
        """Draws weights for deep norm (Wang et al. 2022): values and MLP smaller by `beta`."""
        attention = self.self_attn
        for linear, gain in (
            (attention.q_proj, 1.0), (attention.k_proj, 1.0), (attention.v_proj, beta), (attention.out_proj, beta),
            (self.fc1, beta), (self.fc2, beta),
        ):  # fmt: skip
            nn.init.xavier_normal_(linear.weight, gain=gain)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, distance: Tensor) -> Tensor:
        """F N E, with the bias of distances H N N."""
        hidden = self.self_attn_layer_norm(self.residual * hidden + self.self_attn(hidden, distance))
        inner = self.fc2(functional.gelu(self.fc1(hidden)))
        return self.final_layer_norm(self.residual * hidden + inner)


class _GatedAttention(nn.Module):
    """Self-attention with a bias of the distance that each query scales (as in WavLM)."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))
        self.grep_linear = nn.Linear(config.width // config.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, config.heads, 1, 1))

    def forward(self, hidden: Tensor, distance: Tensor) -> Tensor:
        """F N E."""
        query, key, value = (
            rearrange(linear(hidden), "f n (h d) -> f h n d", h=self.heads)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        reset, update = rearrange(self.grep_linear(query), "f h n (g c) -> g f h n c", g=2).sum(-1).sigmoid()
        gate = reset.unsqueeze(-1) * (update.unsqueeze(-1) * self.grep_a - 1.0) + 2.0  # F H N 1
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=gate * distance)
        return self.out_proj(rearrange(attended, "f h n d -> f n (h d)"))


_PUBLISHED = {
    "encoder_embed_dim": "width",
    "encoder_layers": "layers",
    "encoder_attention_heads": "heads",
    "encoder_ffn_embed_dim": "mlp_width",
    "input_patch_size": "patch_size",
    "embed_dim": "patch_width",
    "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups",
    "num_buckets": "buckets",
    "max_distance": "max_distance",
}
"""Published settings that are sizes of ours."""
_FIXED: dict[str, Any] = {
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "deep_norm": True,
    "layer_norm_first": False,
    "conv_bias": False,
    "activation_fn": "gelu",
}
"""Published settings that have one value in all BEATs models from iter1 on."""


def load_beats(encoder: BeatsEncoder, state: Mapping[str, Tensor], settings: Mapping[str, Any] | None = None) -> None:
    """Loads published weights, strictly. The classifier of a fine-tuned model is left out.

    Args:
        encoder: filled with the weights.
        state: tensors by their published names; the entry `model` of a published file.
        settings: the entry `cfg` of the file, which has to describe this encoder; None if there is none.

    Raises:
        CheckpointError: naming the setting or the tensors that do not fit.
    """
    for name, value in (settings or {}).items():
        ours = getattr(encoder.config, _PUBLISHED[name]) if name in _PUBLISHED else _FIXED.get(name, value)
        if value != ours:
            raise CheckpointError(f"these weights are of a BEATs with {name} = {value!r:.40}; the encoder has {ours!r}")
    load_strictly(encoder, named_as_ours(state), what="BEATs")


def beats_config(settings: Mapping[str, Any]) -> BeatsConfig:
    """The configuration that the entry `cfg` of a published file describes."""
    return BeatsConfig(**{ours: settings[name] for name, ours in _PUBLISHED.items() if name in settings})
