"""What lies behind the things: frames of the pictures and videos of a folder, or made textures.

S side
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmllm.errors import InputError
from mmllm.synthetic.things import textures
from mmllm.synthetic.things.names import split
from mmllm.video.errors import VideoError
from mmllm.video.frame_files import IMAGE_SUFFIXES
from mmllm.video.still_images import opened_image

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".gif")
_UNSEEN = 5
_MOMENTS = (0.15, 0.5, 0.85)
"""Parts of a video's length at which its frames are taken."""
_KEPT = 512
_LARGEST = 512


class Grounds:
    """The grounds of a folder, or textures.

    Args:
        folder: a folder of pictures and videos; None for textures.

    Raises:
        InputError: if it is no folder, or has fewer than two pictures and videos.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is None:
            self.seen, self.unseen = tuple(sorted(textures.SEEN)), tuple(sorted(textures.UNSEEN))
            return
        if not folder.is_dir():
            raise InputError(f"{folder}: the folder of grounds is missing")
        names = [file.name for file in folder.iterdir() if file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
        names = [name for name in names if not name.startswith(".")]
        if len(names) < 2:
            raise InputError(
                f"{folder}: has {len(names)} pictures and videos; grounds need two or more, as one part is kept for "
                "evaluation"
            )
        self.seen, self.unseen = split(names, max(1, len(names) // _UNSEEN))

    def picture(self, name: str, seed: int, side: int) -> Image:
        """A ground in RGB, S S: a part of a frame, or a texture. The same for the same seed.

        Raises:
            InputError: if the file cannot be read.
        """
        from PIL import Image

        if self.folder is None:
            return Image.fromarray(textures.texture(name, seed, side))
        generator = np.random.Generator(np.random.PCG64([seed, 9]))
        frame = Image.fromarray(_frame(self.folder / name, int(generator.integers(len(_MOMENTS)))))
        edge = round(min(frame.size) * generator.uniform(0.75, 1.0))
        left, top = (int(generator.integers(length - edge + 1)) for length in frame.size)
        part = frame.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else part


@functools.lru_cache(_KEPT)
def _frame(path: Path, moment: int) -> np.ndarray:
    """A picture, or a frame of a video, uint8 (H W 3), at most `_LARGEST` pixels high or wide."""
    from PIL import Image

    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with opened_image(path) as file:
                picture = file.convert("RGB")
        else:
            from mmllm.video.opening import open_video

            with open_video(path) as video:
                picture = Image.fromarray(video.frames_at([_MOMENTS[moment] * video.info.duration_s]).frames[0])
    except (VideoError, OSError) as problem:
        raise InputError(f"{path}: cannot be a ground: {problem}; take it out of the folder") from None
    picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(picture)
