"""Opening image files of allowed formats, recognised by their first bytes. The file's name does not matter.

Pillow would try every format that it knows, and for PostScript it starts an external program.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video._not_video import kind_of
from mmllm.video.errors import LimitExceeded, VideoDecodeError
from mmllm.video.limits import VideoLimits
from mmllm.video.names import existing

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_HEAD_BYTES = 4096
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    *((b"P%d" % kind + space, "PPM") for kind in range(1, 7) for space in (b" ", b"\n", b"\r", b"\t")),
)


def opened_image(source: Any) -> PilImage:
    """The image of a path or of a binary file object; its pixels are not decoded yet.

    Raises:
        VideoDecodeError: if it is of no allowed format; the message says what it is. Or if its header is damaged.
        OSError: if it cannot be read.
    """
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        source = existing(source) or source
        with open(source, "rb") as file:
            head = file.read(_HEAD_BYTES)
    else:
        source.seek(0)
        head = source.read(_HEAD_BYTES)
        source.seek(0)
    image_format = _format_of(head)
    if image_format == "AVIF":
        Image.init()
    if not image_format or (image_format == "AVIF" and image_format not in Image.OPEN):
        what = kind_of(head) if head else "the file is empty"
        raise VideoDecodeError(f"{source}: not a readable image: {what or f'it begins with {head[:12]!r}'}")
    try:
        return Image.open(source, formats=[image_format])
    except (OSError, Image.DecompressionBombError):
        raise
    except Exception as problem:  # Pillow raises many types of errors on damaged headers
        raise VideoDecodeError(f"{source}: not a readable image: {problem}") from None


def is_still_image(path: Path) -> bool:
    """Whether a file begins as an image does that is no animation; GIF and WebP may be animations."""
    with path.open("rb") as file:
        return _format_of(file.read(_HEAD_BYTES)) not in ("", "GIF", "WEBP")


def _format_of(head: bytes) -> str:
    """Pillow's name of the format; empty if it is not an allowed one."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return next((name for start, name in _STARTS if head.startswith(start)), "")


def load_image(path: str | Path, limits: VideoLimits) -> np.ndarray:
    """uint8 RGB (H W 3) of an image file.

    The image is turned upright by its EXIF entry. Transparent pixels are laid on black. Of an animation, the first
    picture is taken.

    Raises:
        LimitExceeded: if it has too many pixels; no memory of that size is allocated.
        VideoDecodeError: if it cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with opened_image(path) as image:
                limits.check_size(str(path), *image.size)
                return rgb_of(ImageOps.exif_transpose(image))
    except (LimitExceeded, VideoDecodeError):
        raise
    except Image.DecompressionBombError:
        raise LimitExceeded(
            f"{path}: more pixels than allowed, which are {limits.pixels}: make a smaller copy",
            in_python="or raise VideoLimits.pixels",
        ) from None
    except Exception as problem:  # Pillow's decoders raise many types of errors on damaged data
        raise VideoDecodeError(f"{path}: not a readable image: {problem}") from None


def rgb_of(image: PilImage) -> np.ndarray:
    """uint8 RGB (H W 3) of an image of any mode. Transparent pixels are laid on black."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        return np.repeat((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def broken_images(files: Sequence[Path], limits: VideoLimits) -> list[str]:
    """For each image that cannot be decoded, why; every header is read, and images that look cut short are decoded.

    Args:
        files: the images.
        limits: limits of their size.
    """
    problems = []
    for path in files:
        try:
            if _looks_whole(path, limits):
                continue
            load_image(path, limits)
        except (OSError, VideoDecodeError, LimitExceeded) as problem:
            problems.append(str(problem))
    return problems


def require_readable(folder: Path, files: Sequence[Path], limits: VideoLimits) -> None:
    """Refuses a folder of frames some of whose images cannot be decoded.

    Raises:
        VideoDecodeError: naming the first of them.
    """
    if broken := broken_images(files, limits):
        raise VideoDecodeError(f"{folder}: {len(broken)} images cannot be read: {'; '.join(broken[:5])}")


def _looks_whole(path: Path, limits: VideoLimits) -> bool:
    """Whether an image's header can be read and the file ends as its format demands.

    Raises:
        VideoDecodeError, LimitExceeded: if the header is wrong.
    """
    try:
        with opened_image(path) as image:
            limits.check_size(str(path), *image.size)
            image_format = image.format
    except (VideoDecodeError, LimitExceeded):
        raise
    except Exception:  # Pillow raises many types of errors on damaged headers; a full decode names the problem
        return False
    with open(path, "rb") as file:
        head, length = file.read(12), file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 64))
        tail = file.read()
    if image_format == "PNG":
        return b"IEND\xaeB`\x82" in tail
    if image_format == "JPEG":
        return b"\xff\xd9" in tail
    return image_format == "WEBP" and length >= 8 + int.from_bytes(head[4:8], "little")
