"""DINOv2's vision transformer: patch features after the final norm and, on request, the class token's attention.

B videos, T frames, F frames run at once, N patches (1 + N with the class token), C width, S side in pixels
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.encoders.attention import attention_row, received_attention
from mmllm.encoders.timm_blocks import run_inside
from mmllm.errors import CheckpointError, ConfigError
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
    regridded,
)
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class DinoV2Config:
    """A DINOv2 vision transformer; the defaults are facebook/dinov2-giant at the input size of TDC."""

    image_size: int = 378
    """Side of the square input in pixels. If the weights are for another size, their positions are resampled."""
    patch_size: int = 14
    width: int = 1536
    layers: int = 40
    heads: int = 24
    mlp_width: int = 4096
    """Width between the layers of an MLP; in a gated MLP, the width of each of its two branches."""
    gated: bool = True
    """SwiGLU instead of an MLP with GELU; only the giant model has it."""
    select_layer: int = -1
    """Which hidden state gives the features: 1 to `layers`, or counted from the end."""
    final_norm: bool = True
    """Whether the features go through the tower's last norm."""
    output_grid: int | None = None
    """Side of the grid that features and scores are resampled to; 24 in TDC."""
    fit: Literal["crop", "pad", "squash"] = "crop"
    """How a frame is brought to the square; see `FrameTransform`."""
    chunk: int = 16
    """Most frames run at once; bounds the memory."""

    def __post_init__(self) -> None:
        for field in ("patch_size", "width", "layers", "heads", "mlp_width", "chunk"):
            require(getattr(self, field) > 0, self, field, "positive")
        divisible = self.image_size > 0 and self.image_size % self.patch_size == 0
        require(divisible, self, "image_size", f"a positive multiple of patch_size = {self.patch_size}")
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
        """How frames are prepared for this encoder."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return FrameTransform(size=self.image_size, fit=self.fit, mean=mean, std=std)


@register("encoder", "dinov2", config=DinoV2Config)
class DinoV2Encoder(Encoder):
    """DINOv2's vision transformer, built by timm."""

    grid: tuple[int, int]
    score_names = frozenset({"cls_attention", "mean_attention"})
    runs_encoder_stage: ClassVar[bool] = True

    def __init__(self, config: DinoV2Config) -> None:
        from timm.layers import SwiGLUPacked
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.config = config
        self.width = config.width
        self.patches = config.image_size // config.patch_size
        self.grid = (config.output_grid or self.patches,) * 2
        gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if config.gated else {}
        self.tower: Any = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            global_pool="",
            embed_dim=config.width,
            depth=config.layers,
            num_heads=config.heads,
            mlp_ratio=config.mlp_width * (2 if config.gated else 1) / config.width,
            init_values=1e-5,
            **gated,
        )

    def forward(
        self,
        pixels: Tensor,
        *,
        frame_mask: Tensor | None = None,
        scores: Collection[str] = (),
        inside: InsideBlocks | None = None,
    ) -> VisualTokens:
        """Patch features of the selected layer, class token removed.

        Args:
            pixels: float, B T 3 S S, normalised with the config's constants.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: `cls_attention` or `mean_attention` of the block that made the features, or `...@I` of layer I.
                They are softmax weights over all 1 + N keys; the class token's own weight is removed.
            inside: a reducer that drops or merges tokens inside the blocks; there are no scores then.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
            ConfigError: if there is a reducer inside and features are resampled to `output_grid`.
        """
        check_pixels(pixels, encoder="dinov2", size=self.config.image_size)
        requested = read_scores(
            scores,
            encoder="dinov2" if inside is None else "dinov2, with tokens reduced inside it,",
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

    def _embedded(self, frames: Tensor) -> Tensor:
        """F 1+N C: the class token and the patches, with their positions."""
        patches = self.tower.patch_embed(frames.to(self.tower.cls_token.dtype))
        tokens = torch.cat([self.tower.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.tower.pos_embed

    def _run_inside(self, frames: Tensor, inside: InsideBlocks) -> FrameOutput:
        """The tower with a reducer between attention and MLP of each block."""
        if self.grid != (self.patches, self.patches):
            raise ConfigError(
                f"DinoV2Config.output_grid = {self.config.output_grid}: tokens that are reduced inside the encoder "
                "cannot be resampled; leave it out"
            )
        hidden, state = run_inside(self.tower.blocks[: self.config.blocks_run], self._embedded(frames), inside)
        features, index, size = inside.finish(self.tower.norm(hidden) if self.config.final_norm else hidden, state)
        return FrameOutput(features=features, index=index, size=size)

    def _run(self, frames: Tensor, requested: Mapping[str, tuple[str, int]]) -> FrameOutput:
        """The tower block by block, up to the last hidden state that features or a score need."""
        tower = self.tower
        scores: dict[str, Tensor] = {}
        last = max([self.config.blocks_run, *(layer for _, layer in requested.values())])
        hidden = features = self._embedded(frames)  # F 1+N C
        for number in range(last + 1):
            if number == self.config.blocks_run:
                features = hidden
            for name, (kind, layer) in requested.items():
                if layer == number:
                    scores[name] = self._regridded(self._score(kind, tower.blocks[number], hidden))
            if number < last:
                hidden = tower.blocks[number](hidden)
        features = tower.norm(features) if self.config.final_norm else features
        return FrameOutput(
            features=self._regridded(features[:, 1:]),
            scores={name: score.squeeze(-1) for name, score in scores.items()},
        )

    def _regridded(self, values: Tensor) -> Tensor:
        return regridded(values, (self.patches, self.patches), self.grid)

    def _score(self, kind: str, block: Any, hidden: Tensor) -> Tensor:
        """F N 1: the attention that each patch receives in a block."""
        queries, keys, _ = block.attn.qkv(block.norm1(hidden)).chunk(3, dim=-1)
        if kind == "cls_attention":
            weights = attention_row(queries[:, 0], keys, heads=self.config.heads)
        else:
            weights = received_attention(queries, keys, heads=self.config.heads)
        return weights[:, 1:, None]


def dinov2_config(published: Mapping[str, Any], **changes: Any) -> DinoV2Config:
    """The configuration that a `config.json` of transformers' DINOv2 describes."""
    width, gated = published.get("hidden_size", 768), published.get("use_swiglu_ffn", False)
    inner = int(width * published.get("mlp_ratio", 4))
    described = {
        "image_size": published.get("image_size", 224),
        "patch_size": published.get("patch_size", 14),
        "width": width,
        "layers": published.get("num_hidden_layers", 12),
        "heads": published.get("num_attention_heads", 12),
        "mlp_width": (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner,
        "gated": gated,
    }
    return DinoV2Config(**{**described, **changes})


_NAMES = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^layernorm\.": "norm.",
    r"^encoder\.layers?\.": "blocks.",
    r"\.attention\.(output\.dense|o_proj)\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.fc1.",
    r"\.mlp\.(weights_out|down_proj)\.": ".mlp.fc2.",
}
"""transformers' name -> timm's, for the tensors that timm does not stack."""
_PARTS = {"query": "q", "key": "k", "value": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v"}


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' DINOv2 tensors, without prefix, under timm's names.

    Raises:
        CheckpointError: if one of a layer's queries, keys and values, or of a gate's two branches, is missing.
    """
    named: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name == "embeddings.mask_token":
            continue
        split = re.fullmatch(r"encoder\.layers?\.(\d+)\.attention\.(?:attention\.)?(\w+)\.(weight|bias)", name)
        gate = re.fullmatch(r"encoder\.layers?\.(\d+)\.mlp\.(gate|up)_proj\.(weight|bias)", name)
        if split and split[2] in _PARTS:
            stacks.setdefault(f"blocks.{split[1]}.attn.qkv.{split[3]}", {})[_PARTS[split[2]]] = value
        elif gate:
            stacks.setdefault(f"blocks.{gate[1]}.mlp.fc1.{gate[3]}", {})[gate[2]] = value
        else:
            renamed = name
            for pattern, replacement in _NAMES.items():
                renamed = re.sub(pattern, replacement, renamed)
            named[renamed] = value
    for name, parts in stacks.items():
        order = ("gate", "up") if ".mlp." in name else ("q", "k", "v")
        if set(order) != set(parts):
            raise CheckpointError(f"{name} must be made of {', '.join(order)}; given: {', '.join(sorted(parts))}")
        named[name] = torch.cat([parts[part] for part in order])
    return named


def load_dinov2_tower(encoder: DinoV2Encoder, state: Mapping[str, Tensor]) -> None:
    """Loads DINOv2 weights under the names of transformers or timm, with any prefix.

    Positions of another image size are resampled once (bicubic, float32); transformers does it at every forward pass.

    Raises:
        CheckpointError: if the tower is not found, or a tensor of it is missing, unknown or of another shape.
    """
    landmark = "embeddings.patch_embeddings.projection.weight"
    if any(name == landmark or name.endswith(f".{landmark}") for name in state):
        tower = below(state, landmark, what="a DINOv2 tower")
        tower_modules = ("embeddings.", "encoder.", "layernorm.")
        tower = to_timm({name: value for name, value in tower.items() if name.startswith(tower_modules)})
    else:
        tower = below(state, "patch_embed.proj.weight", what="a DINOv2 tower")
        tower.pop("mask_token", None)
    if "pos_embed" in tower:
        tower["pos_embed"] = resampled_positions(tower["pos_embed"], encoder.patches)
    load_strictly(encoder.tower, tower, what="the DINOv2 tower")


def resampled_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1 1+N C) of a square grid, resampled to a grid of `side` x `side`.

    The class token's position stays as it is. Positions of a grid that is not square are returned unchanged.
    """
    given_side = round((positions.shape[1] - 1) ** 0.5)
    if given_side == side or given_side**2 != positions.shape[1] - 1:
        return positions
    image = rearrange(positions[:, 1:].float(), "1 (h w) c -> 1 c h w", h=given_side)
    image = nn.functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    patches = rearrange(image, "1 c h w -> 1 (h w) c").to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)
