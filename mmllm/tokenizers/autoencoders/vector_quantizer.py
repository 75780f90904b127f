"""Vector quantisation: each token becomes the nearest of a learned list of codes.

B images, N tokens of an image, D channels of a token, K codes
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from mmllm.errors import InputError


class Quantized(NamedTuple):
    """What quantisation gives."""

    codes: Tensor
    """float, B N D: of unit length; the gradient passes unchanged to the tokens."""
    ids: Tensor
    """int64, B N."""
    loss: Tensor
    """Scalar: how far tokens and codes are apart, to pull both together in training."""


class VectorQuantizer(nn.Module):
    """Codes of unit length, compared by their angle, as in TiTok (arXiv 2406.07550)."""

    def __init__(self, codes: int, width: int, *, commitment: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.commitment = commitment

    @property
    def codebook(self) -> Tensor:
        """float, K D: the codes, of unit length."""
        return nn.functional.normalize(self.embedding.weight, dim=-1)

    def forward(self, tokens: Tensor) -> Quantized:
        """The nearest codes of tokens B N D."""
        directions, codebook = nn.functional.normalize(tokens.float(), dim=-1), self.codebook
        ids = (directions.detach() @ codebook.detach().T).argmax(-1)
        codes = codebook[ids]
        apart = nn.functional.mse_loss
        loss = apart(codes, directions.detach()) + self.commitment * apart(directions, codes.detach())
        return Quantized(directions + (codes - directions).detach(), ids, loss)

    def codes(self, ids: Tensor) -> Tensor:
        """Codes (float, ... D) of ids (integers, ...).

        Raises:
            InputError: for an id that does not exist.
        """
        count = len(self.embedding.weight)
        if ids.is_floating_point() or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < count):
            raise InputError(f"ids must be whole numbers from 0 to {count - 1}")
        return self.codebook[ids]
