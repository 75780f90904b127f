"""The frames of a world of things.

F frames, S side of a frame
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmllm.synthetic.things.grounds import Grounds
from mmllm.synthetic.things.pictures import PictureSet
from mmllm.synthetic.things.placing import patch_of
from mmllm.synthetic.things.staging import Staging

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN = 1.3
"""Side of a ground in sides of the frame: the camera moves over it."""
_PIECE_FRAMES = 64
_GROUND_NEARNESS = 0.5
"""How far the ground moves against the camera."""


def draw_pieces(staging: Staging, pictures: PictureSet, grounds: Grounds, size: int) -> Iterator[np.ndarray]:
    """All frames in order, in pieces that need little memory: each is uint8 (F S S 3), RGB."""
    frames = []
    for frame in draw(staging, pictures, grounds, size):
        frames.append(frame)
        if len(frames) == _PIECE_FRAMES:
            yield np.stack(frames)
            frames = []
    if frames:
        yield np.stack(frames)


def draw(staging: Staging, pictures: PictureSet, grounds: Grounds, size: int) -> Iterator[np.ndarray]:
    """Each frame, uint8 (S S 3), RGB."""
    ground, number = None, -1
    for frame in range(staging.world.frames):
        if staging.shot[frame] != number:
            number = int(staging.shot[frame])
            shot = staging.world.shots[number]
            ground = grounds.picture(shot.ground, shot.ground_seed, round(_MARGIN * size))
        assert ground is not None
        canvas = _ground_seen(ground, staging, frame, size)
        for row in np.flatnonzero(staging.visible[:, frame]):
            place = (staging.x[row, frame], staging.y[row, frame], staging.size[row, frame], staging.angle[row, frame])
            patch, left, top = patch_of(pictures, staging.world.actors[row].name, place, size)
            canvas.paste(patch, (left, top), patch)
        yield np.asarray(canvas)


def _ground_seen(ground: Image, staging: Staging, frame: int, size: int) -> Image:
    """The part of the ground that the camera sees, S S."""
    from PIL import Image

    scale = 1 / (1 + _GROUND_NEARNESS * (staging.zoom[frame] - 1))
    x, y = ground.width / 2 + _GROUND_NEARNESS * staging.offset[frame] * size - scale * size / 2
    matrix = (scale, 0.0, x, 0.0, scale, y)
    return ground.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
