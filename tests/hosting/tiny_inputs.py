"""Inputs of tiny hosted models, made without processors: prompts of ids, random pictures, left-padded rows.

Shapes: B rows, N prompt length, S side in pixels. A row is a sequence of ids and of `Picture`s; a packer of the family
writes the placeholders of each picture and lays its pixels out as the family's processor does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IMAGE, VIDEO, VISION_START, VISION_END, CLIP_START, CLIP_END = 190, 191, 192, 193, 194, 195
PLACEHOLDERS = [IMAGE, VIDEO]
"""To be suppressed in generation: random weights may say one, and without a cache it would count as a picture."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image or a video in a prompt."""

    modality: str = "video"
    frames: int = 1
    """Frames, temporal grids or tiles."""
    size: tuple[int, int] = (0, 0)
    """Height and width in pixels of an image before it was cut into tiles; only where the family is given it."""
    tokens: int = 0
    """How many placeholders an image of that size has."""
    seed: int = 0

    @property
    def id(self) -> int:
        """Its placeholder."""
        return IMAGE if self.modality == "image" else VIDEO

    def noise(self, *shape: int) -> Tensor:
        """Random pixels that belong to this picture."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed))


Row = tuple[int | Picture, ...]


class Packer:
    """Writes prompts and pixels of one family."""

    def written(self, picture: Picture) -> list[int]:
        """The ids that stand for a picture."""
        raise NotImplementedError

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        """What the vision tower is given for the pictures of each row."""
        raise NotImplementedError

    def of_text(self, ids: Tensor) -> dict[str, Tensor]:
        """Further tensors beside the ids B N."""
        return {}

    def pack(self, rows: Sequence[Row], *, pictures: int = 0) -> dict[str, Any]:
        """Inputs of rows, left-padded; another number `pictures` gives other pixels."""
        rows = [numbered(row, pictures) for row in rows]
        prompts = [
            [i for part in row for i in (self.written(part) if isinstance(part, Picture) else [part])] for row in rows
        ]
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        seen = [[part for part in row if isinstance(part, Picture)] for row in rows]
        return {"input_ids": ids, "attention_mask": mask, **self.of_text(ids), **self.pixels(seen)}


def numbered(row: Row, pictures: int) -> Row:
    """The row with a seed in each picture that follows from its neighbours, not from the batch."""
    start = 1000 * pictures + sum(part for part in row if isinstance(part, int))
    return tuple(replace(part, seed=start + i) if isinstance(part, Picture) else part for i, part in enumerate(row))


def of(modality: str, rows: Sequence[Sequence[Picture]]) -> list[Picture]:
    """All pictures of a modality, in prompt order."""
    return [picture for row in rows for picture in row if picture.modality == modality]


def framed(frames: Iterable[int], start: Sequence[int] = (40,)) -> list[int]:
    """Placeholders frame by frame (the number of each frame is given), a few ids of text before each."""
    written = []
    for index, count in enumerate(frames):
        written += [*start, 41 + index % 9, VISION_START, *[IMAGE] * count, VISION_END]
    return written


@dataclass(frozen=True)
class Patches(Packer):
    """Qwen-VL: rows of patches with grids, 8 x 8 patches a grid in videos, 4 x 4 in images; 2 x 2 are merged."""

    stamps: bool = False
    """Text before each temporal grid."""
    seconds: bool = False
    """Give the seconds of a grid."""

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":
            return [VISION_START, *[IMAGE] * 4 * picture.frames, VISION_END]
        if not self.stamps:
            return [VISION_START, *[VIDEO] * 16 * picture.frames, VISION_END]
        return [i for f in range(picture.frames) for i in (60 + f, 61, VISION_START, *[VIDEO] * 16, VISION_END)]

    def of_text(self, ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).int()}

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        packed = {}
        for modality, name, side in (("image", "pixel_values", 4), ("video", "pixel_values_videos", 8)):
            if seen := of(modality, rows):
                packed[name] = torch.cat([p.noise(p.frames * side * side, 3 * 2 * 4 * 4) for p in seen])
                packed[f"{modality}_grid_thw"] = torch.tensor([[p.frames, side, side] for p in seen])
        if self.seconds and (videos := of("video", rows)):
            packed["second_per_grid_ts"] = torch.tensor([0.5 * video.frames for video in videos])
        return packed


@dataclass(frozen=True)
class ClipsOfImages(Patches):
    """GLM-4V: as Qwen, but frames of a video carry the image's id, between marks of the video; times stand behind."""

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":
            return [VISION_START, *[IMAGE] * 4, VISION_END]
        frames = [i for f in range(picture.frames) for i in (VISION_START, *[IMAGE] * 16, VISION_END, 60 + f, 61)]
        return [CLIP_START, *frames, CLIP_END]

    def of_text(self, ids: Tensor) -> dict[str, Tensor]:
        inside = ((ids == CLIP_START).cumsum(1) - (ids == CLIP_END).cumsum(1)) > 0
        return {"mm_token_type_ids": ((ids == IMAGE).int() * (1 + inside.int())).int()}


@dataclass(frozen=True)
class CompressedPatches(Packer):
    """VideoLLaMA3: patches with merge sizes (1 for images, 2 for videos), tokens that did not change left out."""

    def mask(self, video: Picture) -> Tensor:
        """bool, (frames, 16): tokens of a video that the processor keeps; all of its first frame."""
        mask = torch.rand(video.frames, 16, generator=torch.Generator().manual_seed(video.seed % 1000)) < 0.8
        mask[0] = True
        return mask

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":
            return [IMAGE] * 16
        return [i for f, kept in enumerate(self.mask(picture)) for i in (60 + f, 61, *[VIDEO] * int(kept.sum()), 62)]

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        packed = {}
        for modality, name, side in (("image", "pixel_values", 4), ("video", "pixel_values_videos", 8)):
            if seen := of(modality, rows):
                packed[name] = torch.cat([p.noise(p.frames * side * side, 3 * 4 * 4) for p in seen])
                packed[f"{modality}_grid_thw"] = torch.tensor([[p.frames, side, side] for p in seen])
                packed[f"{modality}_merge_sizes"] = torch.full((len(seen),), side // 4)
        if videos := of("video", rows):
            packed["video_compression_mask"] = torch.cat([self.mask(video).flatten() for video in videos])
        return packed


@dataclass(frozen=True)
class Frames(Packer):
    """Images, frames and tiles alike in one tensor (all, 3, S, S): InternVL, Gemma 3, LLaVA-1.5, FastVLM."""

    tokens: int = 16
    side: int = 32
    types: bool = False
    """Give `token_type_ids`, 1 at pictures."""

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":
            return [VISION_START, *[IMAGE] * self.tokens * picture.frames, VISION_END]
        return framed([self.tokens] * picture.frames)

    def of_text(self, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == IMAGE).long()} if self.types else {}

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.cat([p.noise(p.frames, 3, self.side, self.side) for row in rows for p in row])}


@dataclass(frozen=True)
class Lines(Packer):
    """Pixtral: images of any shape, text behind each line of patches; pixels (all, 3, largest height and width)."""

    patch: int = 4

    def written(self, picture: Picture) -> list[int]:
        lines, length = (pixels // self.patch for pixels in picture.size)
        return [i for _ in range(lines) for i in (*[IMAGE] * length, VISION_END)]

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        seen = of("image", rows)
        pixels = torch.zeros(len(seen), 3, *(max(picture.size[axis] for picture in seen) for axis in range(2)))
        for place, image in enumerate(seen):
            pixels[place, :, : image.size[0], : image.size[1]] = image.noise(3, *image.size)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([image.size for image in seen])}


@dataclass(frozen=True)
class RowsOfFrames(Packer):
    """SmolVLM: pictures of a row together, (B, most in a row, 3, S, S); black ones fill up and are dropped again."""

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":  # tiles, with their row and column
            return [i for tile in range(picture.frames) for i in (VISION_START, 70 + tile, *[IMAGE] * 16)] + [
                VISION_END
            ]
        return framed([16] * picture.frames, start=[50, 51, 52, 53, 54])

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        frames = [torch.cat([picture.noise(picture.frames, 3, 32, 32) for picture in row]) for row in rows]
        pixels = torch.zeros(len(rows), max(map(len, frames)), 3, 32, 32)
        for row, seen in enumerate(frames):
            pixels[row, : len(seen)] = seen
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(*pixels.shape[:2], 32, 32, dtype=torch.long)}


@dataclass(frozen=True)
class StackedVideos(Packer):
    """Videos (all, T, 3, S, S) without text between frames, so all have equally many; images (all, tiles, 3, S, S)."""

    per_frame: int
    """Tokens of a frame."""
    extra: int = 0
    """Tokens behind a video."""
    per_image: int = 0
    """Tokens of an image or a tile that has no size."""
    side: int = 32
    stacked_images: bool = True
    numbers: bool = False
    """Give the number of images of each row."""

    def written(self, picture: Picture) -> list[int]:
        if picture.modality == "image":
            return [IMAGE] * (picture.tokens or self.per_image * picture.frames)
        return [VIDEO] * (picture.frames * self.per_frame + self.extra)

    def pixels(self, rows: Sequence[Sequence[Picture]]) -> dict[str, Tensor]:
        packed = {}
        if images := of("image", rows):
            tiles = max(image.frames for image in images)
            pixels = torch.zeros(len(images), tiles, 3, self.side, self.side)
            for place, image in enumerate(images):
                pixels[place, : image.frames] = image.noise(image.frames, 3, self.side, self.side)
            packed["pixel_values"] = pixels if self.stacked_images else pixels.squeeze(1)
            if self.numbers:
                packed["batch_num_images"] = torch.tensor([len(of("image", [row])) for row in rows])
            if images[0].tokens:
                packed["image_sizes"] = torch.tensor([image.size for image in images])
        if videos := of("video", rows):
            packed["pixel_values_videos"] = torch.stack([v.noise(v.frames, 3, self.side, self.side) for v in videos])
        return packed
