"""SmolVLM 2: frames and tiles are images, `Frame from MM:SS:` stands before a frame; pixel shuffle makes few tokens.

Its tower is given the pictures of a row together, filled up with black ones, which it leaves out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hosting.family import Container, HostFamily
from mmllm.hosting.frames import grouped, side_by_side
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of
from mmllm.registry import register

TILES_APART = 4
"""Most ids between two tiles of an image: a mark, the tile's row and column, the end of a line. A frame has more."""


@dataclass(frozen=True, kw_only=True)
class SmolVLMHosting:
    """Nothing to set."""


@register("host", "smolvlm", config=SmolVLMHosting)
class SmolVLM(HostFamily):
    """SmolVLM 2."""

    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    placeholder: ClassVar[Mapping[Source, str]] = {"image": "image_token_id"}
    container: ClassVar[Container | Mapping[Source, Container]] = "row list"

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """Tiles of one image are told from frames of a video by how much text stands between them.

        Raises:
            InputError: if a picture is all 0, which the tower would leave out.
        """
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        ids = inputs["input_ids"]
        if "pixel_values" in inputs:
            _check_pictures((ids == config.image_token_id).sum(1) // side**2, inputs["pixel_values"])
        groups = grouped(ids, config.image_token_id, side**2, tiles_apart=TILES_APART)
        return [side_by_side(modality, frames, side**2, source="image") for modality, frames in groups]

    def towers(self, model: Any) -> dict[Source, Tower]:
        """A tower without a class token."""
        tower = tower_of(model.base_model.vision_model)
        return {} if tower is None else {"image": tower}

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: the mean of the patches that their pixel shuffle puts into a token."""
        maps = torch.cat(calls).unsqueeze(-1)  # F N 1
        return model.base_model.connector.pixel_shuffle(maps, model.config.scale_factor).mean(-1).flatten()


def _check_pictures(written: Tensor, pixels: Tensor) -> None:
    """Refuses rows with another number of pictures than the prompt says (int64, B); pixels are B F 3 H W."""
    seen = (pixels != 0).flatten(2).any(-1)  # B F
    for row, (count, pictures) in enumerate(zip(written.tolist(), seen.cpu(), strict=True)):
        if count == int(pictures.sum()):
            continue
        empty = (~pictures[:count]).nonzero().flatten().tolist()
        if count <= len(pictures) and empty:
            raise InputError(
                f"picture {empty[0]} of row {row} is all 0 after normalising (an even grey): SmolVLM takes it for "
                "filling and leaves it out; change one of its pixels"
            )
        raise InputError(f"row {row} has placeholders for {count} pictures, but {int(pictures.sum())} pictures")
