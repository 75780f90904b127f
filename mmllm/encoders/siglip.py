"""SigLIP's vision transformer: patch features of a late layer, and two scores that need no class token.

`mean_attention` is the attention that a patch receives from all patches inside a block. `probe_attention` is the
attention of the pooling head's learned query over the patches after the last block. In training this query has the role
that a class token has in CLIP.

B videos, T frames, F frames run at once, N patches, C width, S side in pixels
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.encoders.attention import attention_row, mean_keys, received_attention
from mmllm.encoders.siglip_names import LANDMARKS, layout_of, to_transformers
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import Encoder
from mmllm.modeling.offloaded import in_memory
from mmllm.modeling.tower import (
    FrameOutput,
    below,
    check_pixels,
    encode_frames,
    load_strictly,
    needs_gradient,
    read_scores,
    regridded,
)
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """A SigLIP vision transformer; the defaults are google/siglip-so400m-patch14-384."""

    image_size: int = 384
    """Side of the square input in pixels; pixels beyond the last whole patch are not used."""
    patch_size: int = 14
    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_width: int = 4304
    layer_norm_eps: float = 1e-6
    select_layer: int = -1
    """Which hidden state gives the features: 1 to `layers`, or counted from the end. The final norm is not applied."""
    pooling_head: bool = True
    """Whether the weights have the attention pooling head; without it there is no `probe_attention`."""
    output_grid: int | None = None
    """Side of the grid that features and scores are resampled to; 24 in TDC."""
    chunk: int = 32
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        for field in ("image_size", "patch_size", "width", "layers", "heads", "mlp_width", "chunk"):
            require(getattr(self, field) > 0, self, field, "positive")
        require(self.patch_size <= self.image_size, self, "patch_size", f"at most image_size = {self.image_size}")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        allowed = f"1 to {self.layers}, or -{self.layers} to -1"
        require(self.select_layer != 0 and abs(self.select_layer) <= self.layers, self, "select_layer", allowed)
        require(self.output_grid is None or self.output_grid > 0, self, "output_grid", "positive")

    @property
    def blocks_run(self) -> int:
        """How many blocks lie before the selected hidden state."""
        return self.select_layer if self.select_layer > 0 else self.layers + 1 + self.select_layer

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder: squashed to the square."""
        return FrameTransform(size=self.image_size, fit="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@register("encoder", "siglip", config=SiglipConfig)
class SiglipEncoder(Encoder):
    """SigLIP's vision transformer; it runs no further than the layer that gives the patch features."""

    grid: tuple[int, int]

    def __init__(self, config: SiglipConfig) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        super().__init__()
        self.config = config
        self.width = config.width
        self.patches = config.image_size // config.patch_size
        self.grid = (config.output_grid or self.patches,) * 2
        probe = {"probe_attention"} if config.pooling_head else set()
        self.score_names = frozenset({"mean_attention", "keys"} | probe)
        settings: Any = {
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "layer_norm_eps": config.layer_norm_eps,
            "vision_use_head": config.pooling_head,
        }
        self.tower = SiglipVisionModel(SiglipVisionConfig(**settings))

    def forward(
        self, pixels: Tensor, *, frame_mask: Tensor | None = None, scores: Collection[str] = ()
    ) -> VisualTokens:
        """Patch features of the selected layer.

        Args:
            pixels: float, B T 3 S S, normalised with the config's constants.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: `mean_attention` or `keys` of the block that made the features, `mean_attention@I` of layer I, or
                `probe_attention`, which runs the tower to its end.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
        """
        check_pixels(pixels, encoder="siglip", size=self.config.image_size)
        requested = read_scores(
            scores,
            encoder="siglip",
            offers=self.score_names,
            layers=self.config.layers,
            default=self.config.blocks_run - 1,
        )
        return encode_frames(
            lambda frames: self._run(frames, requested),
            pixels,
            grid=self.grid,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self),
        )

    def _run(self, frames: Tensor, requested: Mapping[str, tuple[str, int]]) -> FrameOutput:
        """The tower block by block, up to the last hidden state that features or a score need."""
        tower: Any = self.tower
        blocks, end = tower.encoder.layers, self.config.layers
        scores: dict[str, Tensor] = {}
        layers = {name: end if kind == "probe_attention" else layer for name, (kind, layer) in requested.items()}
        last = max([self.config.blocks_run, *layers.values()])
        hidden = features = tower.embeddings(frames)  # F N C
        for number in range(last + 1):
            if number == self.config.blocks_run:
                features = hidden
            for name, layer in layers.items():
                if layer == number:
                    kind = requested[name][0]
                    scores[name] = self._probe(hidden) if number == end else self._score(kind, blocks[number], hidden)
            if number < last:
                hidden = blocks[number](hidden, None)
        resampled = {name: self._regridded(score) for name, score in scores.items()}
        return FrameOutput(features=self._regridded(features), scores=resampled)

    def _regridded(self, values: Tensor) -> Tensor:
        """Values F N or F N C of all patches on the output grid."""
        own = (self.patches, self.patches)
        return regridded(values if values.ndim == 3 else values.unsqueeze(-1), own, self.grid).view(
            len(values), self.grid[0] * self.grid[1], *values.shape[2:]
        )

    def _score(self, kind: str, block: Any, hidden: Tensor) -> Tensor:
        normed, attention = block.layer_norm1(hidden), block.self_attn
        if kind == "keys":
            return mean_keys(attention.k_proj(normed), heads=self.config.heads)
        return received_attention(attention.q_proj(normed), attention.k_proj(normed), heads=self.config.heads)

    @torch.no_grad()
    def _probe(self, hidden: Tensor) -> Tensor:
        """F N: attention of the pooling head's learned query over the patches F N C."""
        tower: Any = self.tower
        head, normed = tower.head, tower.post_layernorm(hidden)
        with in_memory(head):
            weight, bias = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
            query = nn.functional.linear(head.probe[:, 0], weight[0], bias[0]).expand(len(hidden), -1)
            return attention_row(query, nn.functional.linear(normed, weight[1], bias[1]), heads=self.config.heads)


def load_siglip_tower(encoder: SiglipEncoder, state: Mapping[str, Tensor]) -> None:
    """Loads SigLIP vision weights under the names of transformers, timm or open_clip, with any prefix.

    A pooling head in the weights is ignored if the configuration has none.

    Raises:
        CheckpointError: if the tower is not found, or a tensor of it is missing, unknown or of another shape.
    """
    layout = layout_of(state)
    tower = below(state, LANDMARKS[layout], what="a SigLIP vision tower")
    if layout == "transformers":
        tower_modules = ("embeddings.", "encoder.", "post_layernorm.", "head.")
        tower = {name: value for name, value in tower.items() if name.startswith(tower_modules)}
        tower.pop("embeddings.position_ids", None)
    tower = to_transformers(tower, layout)
    if not encoder.config.pooling_head:
        tower = {name: value for name, value in tower.items() if not name.startswith("head.")}
    load_strictly(encoder.tower, tower, what="the SigLIP vision tower")


def siglip_config(vision_config: Mapping[str, Any], **changes: Any) -> SiglipConfig:
    """The configuration that a `config.json` of transformers' SigLIP describes.

    Raises:
        ConfigError: if the file names an activation that SigLIP does not have.
    """
    activation = vision_config.get("hidden_act", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ConfigError(f"hidden_act = {activation!r}: must be 'gelu_pytorch_tanh' for SigLIP")
    described = {
        "image_size": vision_config.get("image_size", 224),
        "patch_size": vision_config.get("patch_size", 16),
        "width": vision_config.get("hidden_size", 768),
        "layers": vision_config.get("num_hidden_layers", 12),
        "heads": vision_config.get("num_attention_heads", 12),
        "mlp_width": vision_config.get("intermediate_size", 3072),
        "layer_norm_eps": vision_config.get("layer_norm_eps", 1e-6),
        "pooling_head": vision_config.get("vision_use_head", True),
    }
    return SiglipConfig(**{**described, **changes})
