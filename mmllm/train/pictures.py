"""Pictures to train an image tokenizer on: rendered scenes, a folder of images and videos, or a Hugging Face data set.

S side of a picture in pixels, H W height width as stored
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.preprocessing.frames import read_image
from mmllm.runtime.files import make_folder, replacing
from mmllm.runtime.progress import Progress
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.scenes import scene_batch
from mmllm.synthetic.world import COLORS, SHAPES
from mmllm.tokenizers.frame_tokens import from_minus_one_to_one
from mmllm.video.errors import VideoError
from mmllm.video.frame_files import IMAGE_SUFFIXES
from mmllm.video.opening import open_video

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts", ".m4v", ".mpg", ".flv", ".gif")
_SCENES_AT_ONCE = 16
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """Where the pictures come from."""

    source: str = "scenes"
    """`scenes`: rendered ones, each with a caption. A folder: its images and frames of its videos. `hf:NAME`: a data
    set of the Hugging Face hub, or of a folder that `datasets` can read."""
    split: str = "train"
    """Split of a data set of the hub."""
    column: str = "image"
    """Column of a data set with the pictures."""
    caption_column: str | None = None
    """Column of a data set with captions; None for pictures without."""
    frames_per_video: int = 64
    """Frames that are taken of each video of a folder, spread evenly."""
    flip: bool = False
    """Mirror half of the pictures."""
    synthetic: SyntheticConfig = field(default_factory=lambda: SyntheticConfig(world="basic", families=("visible",)))
    """Settings of rendered scenes."""

    def __post_init__(self) -> None:
        require(bool(self.source), self, "source", "scenes, a folder, or hf:NAME")
        require(self.frames_per_video >= 1, self, "frames_per_video", "at least 1")


class Pictures(torch.utils.data.Dataset[Any]):
    """Pictures in training order; picture i depends only on the settings, the seed and i."""

    def __init__(self, config: PicturesConfig, size: int, count: int, *, seed: int, cache: Path) -> None:
        """Finds the pictures; frames of videos are decoded once, into `cache`.

        Raises:
            InputError: if there are none.
        """
        self.config, self.count, self.seed = config, count, seed
        self.transform = from_minus_one_to_one(size)
        self.stored = None if config.source == "scenes" else _stored(config, size, cache)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        if self.stored is None:
            batch, place = divmod(number, _SCENES_AT_ONCE)
            frames, captions = _scenes(self.config.synthetic, self.seed * 1_000_003 + batch)
            picture, caption = frames[place], captions[place]
        else:
            epoch, place = divmod(number, len(self.stored))
            order = _order(len(self.stored), self.seed, epoch)
            picture, caption = self.stored[int(order[place])]
        pixels = torch.from_numpy(self.transform(picture[None])[0])
        if self.config.flip and np.random.default_rng([self.seed, number]).random() < 0.5:
            pixels = pixels.flip(-1)
        return {"images": pixels, "captions": caption}


def batched(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of pictures: `images` B 3 S S, and `captions`."""
    return {"images": torch.stack([row["images"] for row in rows]), "captions": [row["captions"] for row in rows]}


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


@lru_cache(maxsize=2)
def _scenes(config: SyntheticConfig, seed: int) -> tuple[np.ndarray, list[str]]:
    """Frames (uint8, N S S 3) of new scenes, and their captions."""
    frames, targets = scene_batch(config, seed, _SCENES_AT_ONCE)
    return frames[:, 1], [caption_of(targets, scene) for scene in range(_SCENES_AT_ONCE)]


CAPTION_WORDS = ("a", "at", "the", ",", *COLORS, *SHAPES, *_ROWS, *_COLUMNS)
"""All words of the captions of scenes."""


def caption_of(targets: dict[str, np.ndarray], scene: int) -> str:
    """What a scene shows, in words: `a red circle at the top left, a blue square at the middle center`."""
    things = []
    for color in np.flatnonzero(targets["visible"][scene]):
        row = _ROWS[min(int(targets["y"][scene, color] * 3), 2)]
        column = _COLUMNS[min(int(targets["x"][scene, color] * 3), 2)]
        shape = SHAPES[targets["shape"][scene, color]]
        things.append(f"a {COLORS[color]} {shape} at the {row} {column}")
    return ", ".join(things)


class _Files:
    """Images of a folder, read when they are asked for, and frames of its videos, decoded before."""

    def __init__(self, images: list[Path], frames: list[np.ndarray]) -> None:
        self.images, self.frames = images, frames
        self.ends = np.cumsum([len(images), *(len(video) for video in frames)])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> tuple[np.ndarray, str]:
        group = int(np.searchsorted(self.ends, number, side="right"))
        if group == 0:
            return read_image(self.images[number]), ""
        return np.asarray(self.frames[group - 1][number - self.ends[group - 1]]), ""


class _HubSet:
    """A data set of the Hugging Face hub."""

    def __init__(self, config: PicturesConfig) -> None:
        from datasets import load_dataset

        name = config.source.removeprefix("hf:")
        try:
            self.rows = load_dataset(name, split=config.split)
        except (OSError, ValueError) as problem:
            raise InputError(f"{config.source}: {problem}") from None
        for column in filter(None, (config.column, config.caption_column)):
            if column not in self.rows.column_names:
                columns = ", ".join(self.rows.column_names)
                raise InputError(f"{config.source}: there is no column {column!r}; its columns are {columns}")
        self.config = config

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[np.ndarray, str]:
        row = self.rows[number]
        caption = row[self.config.caption_column] if self.config.caption_column else ""
        return np.asarray(row[self.config.column].convert("RGB")), str(caption)


def _stored(config: PicturesConfig, size: int, cache: Path) -> Any:
    """The pictures of a folder or of a data set, by number."""
    if config.source.startswith("hf:"):
        stored: Any = _HubSet(config)
    else:
        folder = Path(config.source)
        if not folder.is_dir():
            raise InputError(f"{folder}: pictures come from scenes, a folder of images and videos, or hf:NAME")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        videos = [path for path in files if path.suffix.lower() in VIDEOS]
        stored = _Files(images, _frames(videos, folder, config.frames_per_video, size, cache))
    if len(stored) == 0:
        raise InputError(f"{config.source}: no picture is there; read are {', '.join((*IMAGE_SUFFIXES, *VIDEOS))}")
    return stored


def _frames(videos: list[Path], folder: Path, count: int, size: int, cache: Path) -> list[np.ndarray]:
    """Frames of each video, uint8 (T H W 3) with the shorter edge of `size`, from the cache if they are there."""
    frames = []
    make_folder(cache)
    with Progress("decode frames of videos", len(videos), "videos", shown=bool(videos)) as bar:
        for path in videos:
            stored = cache / f"{'_'.join(path.relative_to(folder).parts)}.{count}x{size}.npy"
            if not stored.exists():
                try:
                    with open_video(path) as video:
                        clip = video.sample_uniform(count, size=size)
                except VideoError as problem:
                    warnings.warn(f"left out: {problem}", stacklevel=2)
                    continue
                with replacing(stored) as partial:
                    np.save(partial, clip.frames[clip.valid])
            frames.append(np.load(stored, mmap_mode="r"))
            bar.advance()
    return frames
