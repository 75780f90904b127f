"""TokenFLEX's projector: the patch grid pooled to n x n cells, for any n, then a SwiGLU (arXiv 2504.03154).

No code and no weights of it are published; what the paper leaves open is a setting here.

B videos or images, T frames, H W patch grid, n side of the pooled grid, C encoder width, I inner width, D LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, VisualTokenizer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class TokenFlexConfig:
    """TokenFLEX; the defaults are the published numbers of tokens and their rates."""

    tokens: int = 256
    """Tokens of a frame: a square number, at most the encoder's patches."""
    elastic: bool = False
    """In training, draw the number of tokens for each batch from `counts`."""
    counts: tuple[int, ...] = (64, 144, 256)
    """Numbers of tokens that are drawn in training."""
    rates: tuple[float, ...] = (2.0, 3.0, 5.0)
    """How often each of `counts` is drawn, in proportion."""
    inner_width: int | None = None
    """Width of the gated layer; None for that of the LLM. The paper does not give it."""
    norm: bool = False
    """Apply a layer norm to the pooled features first. The paper does not say whether there is one."""

    def __post_init__(self) -> None:
        for field, counts in (("tokens", [self.tokens]), ("counts", self.counts)):
            for count in counts:
                require(count >= 1 and math.isqrt(count) ** 2 == count, self, field, _squares_near(count))
        require(len(self.counts) > 0, self, "counts", "at least one number")
        rates_fit = len(self.rates) == len(self.counts) and min(self.rates) >= 0 and 0 < sum(self.rates) < math.inf
        require(rates_fit, self, "rates", f"{len(self.counts)} numbers of at least 0, and not all 0")
        require(self.inner_width is None or self.inner_width > 0, self, "inner_width", "positive")


def _squares_near(count: int) -> str:
    side = math.isqrt(max(count, 1))
    return f"square numbers such as {side**2} or {(side + 1) ** 2}"


@register("tokenizer", "tokenflex", config=TokenFlexConfig)
class TokenFlexProjector(VisualTokenizer):
    """Adaptive pooling to any number of tokens, then a gated projector (TokenFLEX)."""

    changeable_settings: ClassVar[tuple[str, ...]] = ("tokens",)

    def __init__(self, config: TokenFlexConfig, *, in_width: int, out_width: int, grid: Grid) -> None:
        super().__init__()
        for count in (config.tokens, *(config.counts if config.elastic else ())):
            _side(count, grid)
        self.config = config
        inner_width = config.inner_width or out_width
        self.norm = nn.LayerNorm(in_width) if config.norm else None
        self.gate_proj = nn.Linear(in_width, inner_width, bias=False)
        self.up_proj = nn.Linear(in_width, inner_width, bias=False)
        self.down_proj = nn.Linear(inner_width, out_width, bias=False)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C, whole or reduced, to B T (n n) D. A cell without any patch left is masked.

        Raises:
            InputError: for 1D tokens, or a grid with fewer than n rows or columns.
        """
        side = _side(self.count(), tokens.grid)
        features, present = tokens.on_grid()
        pooled, mask = pooled_grid(features, present, side)
        if self.norm is not None:
            pooled = self.norm(pooled)
        projected = self.down_proj(nn.functional.silu(self.gate_proj(pooled)) * self.up_proj(pooled))
        return VisualTokens(
            features=projected, grid=(side, side), mask=mask, tiling=tokens.tiling, **tokens.about_frames
        )

    def count(self) -> int:
        """The number of tokens of this forward pass.

        In training it comes from PyTorch's own random numbers, which the runner seeds alike on every machine.
        """
        if not (self.training and self.config.elastic):
            return self.config.tokens
        return self.config.counts[int(torch.multinomial(torch.tensor(self.config.rates), 1))]

    def token_count(self, tokens_per_frame: int) -> int:
        """n * n, however many tokens a frame has."""
        return self.config.tokens

    def grid_after(self, grid: Grid) -> Grid:
        """n rows and columns."""
        return None if grid is None else (_side(self.config.tokens, grid),) * 2


def pooled_grid(features: Tensor, present: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Means of the features in n x n cells (B T (n n) C), and which cells have any patch (bool, B T (n n)).

    Cell i covers rows floor(i H / n) to ceil((i + 1) H / n) - 1, so that cells overlap where n does not divide H.

    Args:
        features: B T H W C, zero where a patch is missing.
        present: bool, B T H W.
        side: n.
    """
    b = len(features)
    pooled = nn.functional.adaptive_avg_pool2d(rearrange(features, "b t h w c -> (b t) c h w"), side)
    pooled = rearrange(pooled, "(b t) c h w -> b t (h w) c", b=b)
    if bool(present.all()):
        return pooled, present.new_ones(pooled.shape[:-1])
    share = nn.functional.adaptive_avg_pool2d(rearrange(present.float(), "b t h w -> (b t) 1 h w"), side)
    share = rearrange(share, "(b t) 1 h w -> b t (h w)", b=b)
    return pooled / share.clamp(min=1e-9).unsqueeze(-1).to(pooled.dtype), share > 0


def _side(count: int, grid: Grid) -> int:
    if grid is None:
        raise InputError("tokenflex pools a patch grid, and 1D tokens have none")
    side = math.isqrt(count)
    if side > min(grid):
        raise InputError(f"tokenflex pools and cannot enlarge: {count} tokens of a {grid[0]}x{grid[1]} grid")
    return side
