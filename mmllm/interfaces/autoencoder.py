"""Image tokenizers, with both halves.

B pictures, S their side in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmllm.interfaces.part import Part


class TrainingPass(NamedTuple):
    """What an image tokenizer computes of a batch of images in training."""

    losses: dict[str, Tensor]
    """Losses by name: scalars, with their weights. The error of the pixels of `images` is not among them."""
    images: Tensor | None = None
    """float, B 3 S S: the reconstruction with its gradient, to be compared with the originals; None if the training
    makes none."""


class Autoencoder(Part, nn.Module):
    """An image tokenizer: a picture as a short row of 1D tokens, and back. Sets its two numbers when it is built.

    It is trained apart from any LLM. Its encoder half then stands in the place of a model's encoder.
    """

    image_size: int
    """S: side of the square picture in pixels."""
    most_tokens: int
    """Tokens of a picture."""
    ordered: ClassVar[bool] = False
    """Whether any number of the first tokens gives a picture; otherwise all are needed."""
    reads_text: bool = False
    """Whether `forward` and `reconstruct` take captions."""
    reconstructs_in_training: ClassVar[bool] = False
    """Whether `training_pass` gives a reconstruction, which losses of pictures can then be computed from."""

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a training step: a scalar.

        Args:
            images: float, B 3 S S, from -1 to 1.
            generator: of all random numbers, on the CPU; None for PyTorch's own.

        A tokenizer that reads text also takes `captions`, a text for each image.
        """
        raise NotImplementedError

    def training_pass(
        self, images: Tensor, generator: torch.Generator | None = None, captions: Sequence[str] | None = None
    ) -> TrainingPass:
        """The losses of a training step, by name; `forward` is their sum, with the squared error of the pixels.

        Args:
            images: float, B 3 S S, from -1 to 1.
            generator: of all random numbers, on the CPU; None for PyTorch's own.
            captions: a text for each image, if the tokenizer reads text.
        """
        text = {} if captions is None else {"captions": captions}
        return TrainingPass({"reconstruction": self(images, generator, **text)})

    def reconstruct(
        self, images: Tensor, *, tokens: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images B 3 S S, about -1 to 1 and not clamped, of the tokens of images.

        Args:
            images: float, B 3 S S, from -1 to 1.
            tokens: how many of the first tokens are used; None for all.
            generator: of random numbers, on the CPU.
        """
        raise NotImplementedError
