"""Linear and MLP projectors: encoder features to the LLM's width, token by token.

B videos or images, T frames, N tokens of a frame, C encoder width, D LLM width
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mmllm.fields import require
from mmllm.interfaces import VisualTokenizer
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """One linear map with bias, as in LITA and the first LLaVA."""


@register("tokenizer", "linear", config=LinearConfig)
class LinearProjector(VisualTokenizer):
    """One linear map from encoder features to the LLM's width.

    It has the weights of an `nn.Linear`, but is none: tools that replace each `nn.Linear` give the replacement tensors.
    """

    affine = True

    def __init__(self, config: LinearConfig, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        linear = nn.Linear(in_width, out_width)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C -> B T N D."""
        return tokens.replace(features=nn.functional.linear(tokens.features, self.weight, self.bias))


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Linear layers with exact GELU between them; `mlp2x_gelu` of LLaVA-1.5 is depth 2 without a norm."""

    depth: int = 2
    """Number of linear layers."""
    norm: bool = False
    """Apply a layer norm to the features first."""

    def __post_init__(self) -> None:
        require(self.depth >= 1, self, "depth", "at least 1")


@register("tokenizer", "mlp", config=MlpConfig)
class MlpProjector(nn.Sequential, VisualTokenizer):
    """Linear layers with GELU between them, token by token; parameters are named as in LLaVA (`0`, `2`, ...)."""

    def __init__(self, config: MlpConfig, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(config.depth - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        super().__init__(*layers)
        self.config = config
        self.norm = nn.LayerNorm(in_width) if config.norm else None

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C -> B T N D."""
        features: Tensor = tokens.features if self.norm is None else self.norm(tokens.features)
        for name, layer in self.named_children():
            if name != "norm":
                features = layer(features)
        return tokens.replace(features=features)
