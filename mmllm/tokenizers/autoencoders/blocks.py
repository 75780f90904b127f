"""FlexTok's transformer blocks: norms without weights, gated MLPs, and layers without biases.

B images, L positions of the sequence, C width, H heads, D width of a head, G groups of positions
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

HEAD_WIDTH = 64


def normalised(values: Tensor) -> Tensor:
    """Layer norm over the last axis, without weights, in float32."""
    return nn.functional.layer_norm(values.float(), values.shape[-1:], eps=1e-5).to(values.dtype)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys. Logits are scaled by 8 / D, which is 1 / sqrt(D) for D = 64."""

    def __init__(self, width: int, *, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """B L C -> B L C.

        Args:
            hidden: B L C.
            mask: bool, L L: which keys (last axis) each query sees; None for all.
        """
        queries, keys, values = (
            rearrange(layer(hidden), "b l (h d) -> b h l d", d=self.head_width)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            normalised(queries), normalised(keys), values, attn_mask=mask, scale=8 / self.head_width
        )
        return self.out(rearrange(mixed, "b h l d -> b l (h d)"))


class GatedMlp(nn.Module):
    """SwiGLU. Its inner width is 2/3 of four times the width, so that it has as many weights as a plain MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(2 * (4 * width) / 3)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """B L C -> B L C."""
        return self.down(nn.functional.silu(self.gate(hidden)) * self.up(hidden))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and with a residual connection."""

    def __init__(self, width: int, *, head_width: int) -> None:
        super().__init__()
        self.attention = Attention(width, head_width=head_width)
        self.mlp = GatedMlp(width)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """B L C -> B L C; the mask is that of the attention."""
        hidden = hidden + self.attention(normalised(hidden), mask)
        return hidden + self.mlp(normalised(hidden))


class Modulation(NamedTuple):
    """Six values for each position, B L C each. The gates come first, unlike in DiT."""

    gate_attention: Tensor
    gate_mlp: Tensor
    shift_attention: Tensor
    scale_attention: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor


class ModulatedBlock(nn.Module):
    """A block whose norms are shifted and scaled, and whose branches are gated, by the time: adaLN-zero.

    Each group of positions has a modulation of its own.
    """

    def __init__(self, width: int, *, head_width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.attention = Attention(width, head_width=head_width)
        self.mlp = GatedMlp(width)
        self.modulation = nn.Linear(width, 6 * groups * width)

    def forward(self, hidden: Tensor, time: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """B L C -> B L C.

        Args:
            hidden: B L C, the groups of positions one after the other.
            time: B C, embedded.
            lengths: how many positions each of the G groups has.
        """
        modulation = self._modulation(time, lengths)
        inner = normalised(hidden) * (1 + modulation.scale_attention) + modulation.shift_attention
        hidden = hidden + modulation.gate_attention * self.attention(inner)
        inner = normalised(hidden) * (1 + modulation.scale_mlp) + modulation.shift_mlp
        return hidden + modulation.gate_mlp * self.mlp(inner)

    def _modulation(self, time: Tensor, lengths: tuple[int, ...]) -> Modulation:
        values = rearrange(self.modulation(nn.functional.silu(time)), "b (g six c) -> six b g c", g=self.groups, six=6)
        repeats = torch.tensor(lengths, device=time.device)
        return Modulation(*values.repeat_interleave(repeats, dim=2, output_size=sum(lengths)))
