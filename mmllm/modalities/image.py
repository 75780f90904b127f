"""Still images, seen whole or in tiles.

I images, K the whole image and its tiles, S side of the encoder's input
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import InputError
from mmllm.modalities.inputs import ModalityInputs
from mmllm.modalities.modality import Modality, Stages, in_lists
from mmllm.preprocessing.frames import read_image
from mmllm.preprocessing.media import PIXEL_OPTIONS, MediaReading
from mmllm.preprocessing.question_reader import filled_up
from mmllm.preprocessing.tiles import cut, tilings_of
from mmllm.registry import register
from mmllm.tokens import VisualSequence, VisualTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInputs(ModalityInputs):
    """The images of a batch.

    Raises:
        InputError: if images are in tiles and `tiling` is missing, or there is a `tiling` without tiles.
    """

    pixels: Tensor | None = None
    """float, I 3 S S; or I K 3 S S for images in tiles, each image whole and then its tiles, zero behind its last."""
    tiling: Tensor | None = None
    """int64, I 4. Rows and columns of each image's tiles, its height and width in pixels."""
    frame_size: Tensor | None = None
    """int64, I 2. Height and width in pixels before the images were padded, for models that leave padding out."""
    question: Tensor | None = None
    """int64, I Q. The question about each image, as `QuestionReader` writes it, for parts that read it; -1 fills up."""

    modality: ClassVar[str] = "image"
    flat_names: ClassVar[Mapping[str, str]] = {
        "pixels": "pixel_values",
        "tiling": "image_tiling",
        "frame_size": "image_frame_size",
        "question": "image_question",
    }

    def __post_init__(self) -> None:
        if self.pixels is None:
            name = next(n for f, n in self.flat_names.items() if f != "pixels" and getattr(self, f) is not None)
            raise InputError(f"{name} needs pixel_values beside it, and there are none")
        if self.tiling is None and self.pixels.ndim == 5:
            raise InputError("images in tiles need image_tiling; the processor gives it beside pixel_values")
        if self.tiling is None:
            self.require_shape("pixels", None, 3, None, None)
        else:
            self.require_shape("pixels", None, None, 3, None, None)
            self.require_shape("tiling", len(self.pixels), 4)
        self.require_shape("frame_size", len(self.pixels), 2)
        self.require_shape("question", len(self.pixels), None)

    @classmethod
    def padded(cls, inputs: Sequence[Self]) -> Sequence[Self]:
        """The same images; those with fewer tiles are filled up with tiles of zeros, shorter questions with -1."""
        words = max((image.question.shape[1] for image in inputs if image.question is not None), default=0)
        inputs = [
            image if image.question is None else dataclasses.replace(image, question=filled_up(image.question, words))
            for image in inputs
        ]
        tiled = [image.pixels for image in inputs if image.pixels is not None and image.tiling is not None]
        if not tiled:
            return inputs
        most = max(pixels.shape[1] for pixels in tiled)

        def filled(pixels: Tensor) -> Tensor:
            missing = most - pixels.shape[1]
            return torch.nn.functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else pixels

        return [image if image.tiling is None else image.mapped(filled, but=["tiling", "question"]) for image in inputs]


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Nothing to choose: the processor has the settings for preparing images."""


@register("modality", "image", config=ImageConfig)
class Image(Modality[ImageInputs]):
    """Still images, in tiles if the processor has canvases for them."""

    inputs = ImageInputs
    argument: ClassVar[str] = "images"
    options: ClassVar[tuple[str, ...]] = PIXEL_OPTIONS

    def __init__(self, config: ImageConfig) -> None:
        self.config = config

    def listed(self, given: Any) -> tuple[list[Any], list[int] | None]:
        """All images, in order; an array or tensor of four axes is several images."""
        if getattr(given, "ndim", 0) == 4:
            given = list(given)
        return in_lists(given, lambda entry: entry is not None and not isinstance(entry, (list, tuple)))

    def load(self, processor: MediaReading, source: Any, **options: Any) -> ImageInputs:
        """Inputs of one image: whatever `read_image` takes."""
        canvases = [(height, width) for height, width in processor.pinpoints or ()]
        processor.require_pixels(options, max((height * width for height, width in canvases), default=None))
        picture = read_image(source)
        if processor.pinpoints is None:
            return ImageInputs(
                pixels=torch.from_numpy(processor.frame_transform(picture[None])),
                frame_size=torch.tensor([picture.shape[:2]]) if processor.frame_sizes else None,
            )
        tiles, tiling = cut(picture, canvases, tile=processor.frame_transform.size)
        return ImageInputs(
            pixels=torch.from_numpy(processor.frame_transform(tiles)).unsqueeze(0),
            tiling=torch.tensor([tiling.as_row]),
        )

    def encode(self, model: Stages, inputs: ImageInputs) -> VisualSequence:
        """The visual tokens of I images, as the LLM reads them."""
        return model.arrange(image_tokens(model, inputs))


def image_tokens(model: Stages, inputs: ImageInputs) -> VisualTokens:
    """Features of images: I 1 N C, or I K N C for images in tiles."""
    pixels, encoder = inputs.pixels, model.image_encoder
    assert pixels is not None
    if inputs.tiling is None:
        frames = rearrange(pixels, "i c y x -> i 1 c y x")
        tokens = model.encode(frames, encoder=encoder, question=inputs.question)
        return tokens.replace(still=True, frame_size=inputs.frame_size)
    cuts = tilings_of(inputs.tiling)
    tiles = torch.tensor([cut.partitions for cut in cuts], device=pixels.device)
    present = torch.arange(pixels.shape[1], device=pixels.device) < tiles.unsqueeze(1)  # I K
    tokens = model.encode(pixels, present, encoder=encoder, question=inputs.question)
    return dataclasses.replace(tokens, tiling=cuts, still=True)
