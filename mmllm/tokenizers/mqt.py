"""MQT's elastic resampler: the first M of its learned queries summarise a frame (Matryoshka Query Transformer).

As published, queries and keys depend on positions only, not on the picture: the attention is a constant of the weights,
a fixed pooling for each head. With `content_keys` the keys depend on the patches, too; this needs new training.

B videos or images, T frames, N patches of a frame, H W patch grid, Q queries, M queries used, C encoder width, D LLM
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VisualTokenizer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class MqtConfig:
    """MQT-LLaVA (NeurIPS 2024); the defaults are the published resampler."""

    tokens: int = 256
    """Tokens of a frame: how many of the first queries are used."""
    queries: int = 256
    """Number of learned queries; a square number, because each query has a cell on a square grid of positions."""
    heads: int = 16
    elastic: bool = False
    """In training, draw a new even number of tokens for each batch, from 2 to `queries` (the paper's second stage)."""
    content_keys: bool = False
    """Compute keys from positions and patches; the published resampler has positions only."""

    def __post_init__(self) -> None:
        side = math.isqrt(max(self.queries, 0))
        require(self.queries > 0 and side * side == self.queries, self, "queries", "a positive square number")
        require(1 <= self.tokens <= self.queries, self, "tokens", f"1 to queries = {self.queries}")
        require(self.heads > 0, self, "heads", "positive")
        require(not self.elastic or self.queries >= 2, self, "elastic", "at least two queries")


@register("tokenizer", "mqt", config=MqtConfig)
class MqtResampler(VisualTokenizer):
    """Elastic resampler: the first 1 to 256 of its learned queries summarise a frame (MQT-LLaVA)."""

    changeable_settings: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(self, config: MqtConfig, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if in_width % 4 or in_width % config.heads:
            raise InputError(
                f"mqt needs features of a width divisible by 4 and by heads = {config.heads}, not {in_width}"
            )
        self.config = config
        positions = sincos_positions(math.isqrt(config.queries), in_width)
        self.pos_embed = nn.Parameter(positions.half().float(), requires_grad=False)  # published rounded
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(config.queries, in_width), std=0.02))
        self.attn = QueryAttention(in_width, config.heads, batch_first=True)
        self.ln_q, self.ln_k, self.ln_v = (nn.LayerNorm(in_width, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.randn(in_width, out_width) * out_width**-0.5)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """1D tokens B T M D of features B T N C, whole or reduced.

        Raises:
            InputError: for features of another width, or without a patch grid.
        """
        b, t, _, width = tokens.shape
        if width != self.query.shape[1] or tokens.grid is None:
            raise InputError(
                f"mqt needs features of width {self.query.shape[1]} on a patch grid, not {width} on {tokens.grid}"
            )
        features = rearrange(tokens.features, "b t n c -> (b t) n c")
        index = rearrange(tokens.index, "b t n -> (b t) n").clamp(max=tokens.grid[0] * tokens.grid[1] - 1)
        keys = self.key_positions(tokens.grid)[index].to(features.dtype)
        queries = self.ln_q(self.query + self.pos_embed)[: self.count()]
        frame_valid = rearrange(tokens.mask.any(-1), "b t -> (b t) 1")
        # Attention over no keys at all would be NaN, so that a frame of padding attends to all of its tokens.
        ignored = ~rearrange(tokens.mask, "b t n -> (b t) n") & frame_valid
        mixed, _ = self.attn(
            repeat(queries, "m c -> f m c", f=b * t).to(features.dtype),
            self.ln_k(keys + features if self.config.content_keys else keys),
            self.ln_v(features),
            key_padding_mask=ignored if torch.compiler.is_exporting() or bool(ignored.any()) else None,
            need_weights=False,
        )
        out = (mixed @ self.proj).unflatten(0, (b, t))  # B T M D
        mask = repeat(tokens.mask.any(-1), "b t -> b t m", m=out.shape[2])
        return VisualTokens(features=out, grid=None, mask=mask, **tokens.about_frames)

    def count(self) -> int:
        """The number of queries that this forward pass uses."""
        if self.training and self.config.elastic:
            return 2 * int(torch.randint(1, self.config.queries // 2 + 1, ()))
        return self.config.tokens

    def token_count(self, tokens_per_frame: int) -> int:
        """The number of queries, however many tokens a frame has."""
        return self.config.tokens

    def grid_after(self, grid: Grid) -> Grid:
        """None: the tokens are 1D."""
        return None

    def key_positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of a patch grid, (H W) C: those of the queries, resampled bicubically in float32."""
        side = math.isqrt(self.config.queries)
        square = rearrange(self.pos_embed.float(), "(h w) c -> 1 c h w", h=side)
        resized = nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return rearrange(resized, "1 c h w -> (h w) c").to(self.pos_embed.dtype)


class QueryAttention(nn.MultiheadAttention):
    """torch's attention, which calls its output projection. torch reads only the projection's weight, so that an
    adapter or a quantised layer in its place would be passed over."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """F M C of queries F M C, keys and values F N C; with `need_weights` as in torch, with the weights.

        `key_padding_mask` is bool, F N, True at keys that are not seen.
        """
        if need_weights:
            return super().forward(query, key, value, key_padding_mask, need_weights, **options)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        queries, keys, values = (
            rearrange(nn.functional.linear(part, weight, bias), "f n (h d) -> f h n d", h=self.num_heads)
            for part, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if key_padding_mask is None else ~rearrange(key_padding_mask, "f n -> f 1 1 n")
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, mask)
        return self.out_proj(rearrange(mixed, "f h n d -> f n (h d)")), None


def sincos_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the column, then of the row, of each cell of a square grid: float32, (side side) width."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64).unsqueeze(1) * frequency  # side, width/4
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, cols = repeat(line, "h c -> (h w) c", w=side), repeat(line, "w c -> (h w) c", h=side)
    return torch.cat([cols, rows], dim=1).float()
