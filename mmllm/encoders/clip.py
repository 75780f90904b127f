"""CLIP's vision transformer: patch features of a late layer and, on request, the class token's attention.

B videos, T frames, F frames run at once, N patches (1 + N with the class token), C width, S side in pixels

Layers are counted like transformers' `hidden_states`. -2, the choice of LLaVA, is the output of the last block but one.
The default `cls_attention` is the class token's attention inside that same block.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from mmllm.encoders.attention import attention_row, mean_keys, received_attention
from mmllm.encoders.clip_names import LANDMARKS, layout_of, to_transformers
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import Encoder, InsideBlocks
from mmllm.modeling.tower import (
    FrameOutput,
    below,
    check_pixels,
    encode_frames,
    load_strictly,
    needs_gradient,
    read_scores,
)
from mmllm.preprocessing.frames import CLIP_MEAN, CLIP_STD, FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP vision transformer; the defaults are openai/clip-vit-large-patch14-336."""

    image_size: int = 336
    """Side of the square input in pixels."""
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """OpenAI's weights need quick_gelu; most of LAION's and DataComp's need gelu."""
    layer_norm_eps: float = 1e-5
    select_layer: int = -2
    """Which hidden state gives the features: 1 to `layers`, or counted from the end; -1 is the last block's."""
    class_token: bool = False
    """Keep the class token, as each frame's first token; it has no place on the patch grid."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How a frame is brought to the square; see `FrameTransform`."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    chunk: int = 32
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        for field in ("image_size", "patch_size", "width", "layers", "heads", "mlp_width", "chunk"):
            require(getattr(self, field) > 0, self, field, "positive")
        require(self.patch_size <= self.image_size, self, "patch_size", f"at most image_size = {self.image_size}")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width = {self.width}")
        allowed = f"1 to {self.layers}, or -{self.layers} to -1"
        require(self.select_layer != 0 and abs(self.select_layer) <= self.layers, self, "select_layer", allowed)

    @property
    def blocks_run(self) -> int:
        """How many blocks lie before the selected hidden state."""
        return self.select_layer if self.select_layer > 0 else self.layers + 1 + self.select_layer

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared for this encoder."""
        return FrameTransform(size=self.image_size, fit=self.fit, mean=self.mean, std=self.std)


@register("encoder", "clip", config=ClipConfig)
class ClipEncoder(Encoder):
    """CLIP's vision transformer; it runs no further than the layer that gives the patch features."""

    grid: tuple[int, int]
    score_names = frozenset({"cls_attention", "mean_attention", "keys"})
    changeable_settings: ClassVar[tuple[str, ...]] = ("class_token",)
    runs_encoder_stage: ClassVar[bool] = True
    has_text_tower: ClassVar[bool] = True

    def __init__(self, config: ClipConfig) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.config = config
        self.width = config.width
        self.grid = (config.image_size // config.patch_size,) * 2
        self.tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                hidden_act=config.activation,
                layer_norm_eps=config.layer_norm_eps,
            )
        )

    def forward(
        self,
        pixels: Tensor,
        *,
        frame_mask: Tensor | None = None,
        scores: Collection[str] = (),
        inside: InsideBlocks | None = None,
    ) -> VisualTokens:
        """Patch features of the selected layer, class token removed unless the config keeps it.

        Args:
            pixels: float, B T 3 S S, normalised with the config's constants.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: names of the requested scores, such as `cls_attention` or `cls_attention@0`; see `read_scores`.
                They are softmax weights over all 1 + N keys, not renormalised. The class token's own weight is
                removed together with the class token.
            inside: a reducer that drops or merges tokens inside the blocks; there are no scores then.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
            ConfigError: if the config keeps the class token and there is a reducer inside the blocks.
        """
        check_pixels(pixels, encoder="clip", size=self.config.image_size)
        if inside is not None and self.config.class_token:
            raise ConfigError("clip with class_token = True cannot run a reducer inside its blocks: leave out one")
        requested = read_scores(
            scores,
            encoder="clip" if inside is None else "clip, with tokens reduced inside it,",
            offers=self.score_names if inside is None else (),
            layers=self.config.layers,
            default=self.config.blocks_run - 1,
        )
        return encode_frames(
            lambda frames: self._run(frames, requested) if inside is None else self._run_inside(frames, inside),
            pixels,
            grid=self.grid,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self, inside),
        )

    @property
    def index(self) -> Tensor:
        """int64, one for each token of a frame: its place on the grid; one past the last for the class token."""
        patches = torch.arange(self.grid[0] * self.grid[1])
        return torch.cat([patches[-1:] + 1, patches]) if self.config.class_token else patches

    def _run(self, frames: Tensor, requested: Mapping[str, tuple[str, int]]) -> FrameOutput:
        """The tower block by block, up to the last hidden state that features or a score need."""
        blocks = self.tower.encoder.layers
        scores: dict[str, Tensor] = {}
        last = max([self.config.blocks_run, *(layer for _, layer in requested.values())])
        hidden = features = self.tower.pre_layrnorm(self.tower.embeddings(frames))  # F 1+N C
        for number in range(last + 1):
            if number == self.config.blocks_run:
                features = hidden
            for name, (kind, layer) in requested.items():
                if layer == number:
                    scores[name] = self._score(kind, blocks[number], hidden)  # F N; of keys F N D
            if number < last:
                hidden = blocks[number](hidden, None)
        if not self.config.class_token:
            return FrameOutput(features=features[:, 1:], scores={name: row[:, 1:] for name, row in scores.items()})
        return FrameOutput(features=features, scores=scores, index=self.index.to(frames.device).repeat(len(frames), 1))

    def _run_inside(self, frames: Tensor, inside: InsideBlocks) -> FrameOutput:
        """The tower with each block taken apart: attention by the reducer, reduction of tokens, MLP."""
        hidden = self.tower.pre_layrnorm(self.tower.embeddings(frames))  # F 1+N C
        state = inside.start(hidden, self.config.blocks_run)
        blocks: Any = self.tower.encoder.layers
        for number, block in enumerate(blocks[: self.config.blocks_run]):
            normed, attention = block.layer_norm1(hidden), block.self_attn
            queries, keys, values = (
                rearrange(project(normed), "f n (h d) -> f h n d", h=self.config.heads)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            mixed, row = inside.attend(queries, keys, values, state)
            hidden = hidden + attention.out_proj(rearrange(mixed, "f h n d -> f n (h d)"))
            hidden, state = inside.reduce(number, hidden, row, state)
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
        features, index, size = inside.finish(hidden, state)
        return FrameOutput(features=features, index=index, size=size)

    def _score(self, kind: str, block: Any, hidden: Tensor) -> Tensor:
        attention = block.self_attn
        normed = block.layer_norm1(hidden)
        keys = attention.k_proj(normed)
        if kind == "keys":
            weights = mean_keys(keys, heads=self.config.heads)
        elif kind == "cls_attention":
            weights = attention_row(attention.q_proj(normed[:, 0]), keys, heads=self.config.heads)
        else:
            weights = received_attention(attention.q_proj(normed), keys, heads=self.config.heads)
        return weights


def load_clip_tower(encoder: ClipEncoder, state: Mapping[str, Tensor]) -> None:
    """Loads CLIP vision weights under the names of transformers, open_clip, timm or LLaVA.

    The tower may have any prefix (`model.vision_tower.vision_tower.vision_model.`, `vision_model.`, `visual.`, none).
    All tensors of the tower must fit. The output projection and the other tensors of a whole model are ignored.

    Raises:
        CheckpointError: if the tower is not found, or a tensor of it is missing, unknown or of another shape.
    """
    layout = layout_of(state)
    tower = below(state, LANDMARKS[layout], what="a CLIP vision tower")
    if layout == "transformers":
        tower_modules = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
        tower = {name: value for name, value in tower.items() if name.startswith(tower_modules)}
        tower.pop("embeddings.position_ids", None)
    tower = to_transformers(tower, layout)
    tower.pop("visual_projection.weight", None)
    load_strictly(encoder.tower, tower, what="the CLIP vision tower")


def clip_config(vision_config: Mapping[str, Any], **changes: Any) -> ClipConfig:
    """The configuration that a `config.json` of transformers' CLIP describes.

    Args:
        vision_config: the `vision_config` mapping, or that of a CLIPVisionModel.
        changes: fields of `ClipConfig` that are not in the file, such as `select_layer`.

    Raises:
        ConfigError: if the file names an activation that CLIP does not have.
    """
    activation = vision_config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise ConfigError(f"hidden_act = {activation!r}: must be 'quick_gelu' or 'gelu' for CLIP")
    described = {
        "image_size": vision_config.get("image_size", 224),
        "patch_size": vision_config.get("patch_size", 32),
        "width": vision_config.get("hidden_size", 768),
        "layers": vision_config.get("num_hidden_layers", 12),
        "heads": vision_config.get("num_attention_heads", 12),
        "mlp_width": vision_config.get("intermediate_size", 3072),
        "activation": activation,
        "layer_norm_eps": vision_config.get("layer_norm_eps", 1e-5),
    }
    return ClipConfig(**{**described, **changes})
