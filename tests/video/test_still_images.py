"""Image files are opened by their content, of allowed formats only."""

from __future__ import annotations

import io
import struct
import subprocess
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image, features

from mmllm.errors import InputError
from mmllm.preprocessing.frames import read_image
from mmllm.video.errors import LimitExceeded
from mmllm.video.limits import VideoLimits
from mmllm.video.still_images import load_image, opened_image

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.parametrize("image_format", FORMATS)
def test_allowed_formats_whatever_the_name(image_format, tmp_path):
    path = tmp_path / "picture.eps"
    Image.new("RGB", (32, 16), (250, 0, 0)).save(path, image_format)
    for pixels in (load_image(path, VideoLimits()), read_image(path), read_image(str(path))):
        assert pixels.shape == (16, 32, 3)
        assert pixels[..., 0].min() > 240
        assert pixels[..., 1].max() < 20
    data = io.BytesIO(path.read_bytes())
    assert opened_image(data).size == (32, 16)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\0\0\1\xba" + bytes(99), "it begins with"),
        (b"", "the file is empty"),
        (b"P5 9", "not a readable image|cannot read image"),
    ],
)
def test_other_files_are_refused_without_starting_anything(data, kind, tmp_path, monkeypatch):
    def no_program(*arguments, **_):
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", no_program)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    for read in (read_image, lambda path: load_image(path, VideoLimits())):
        with pytest.raises(InputError, match=kind):
            read(path)


def test_a_missing_image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "Ü 1.png")
    with pytest.raises(InputError, match=r"cannot read image .*No such file or directory; did you mean .*Ü 1\.png\?"):
        read_image(tmp_path / "ü_1.PNG")
    assert read_image(tmp_path / unicodedata.normalize("NFD", "Ü 1.png")).shape == (8, 8, 3)


def test_images_in_memory_are_not_files():
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert read_image(pixels) is pixels
    assert read_image(Image.fromarray(pixels)).shape == (4, 4, 3)


def test_pictures_that_claim_much_are_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    for name, data in {"a.png": png, "a.ppm": b"P6 60000 60000 255\n", "b.ppm": b"P6 9000 9000 255\n"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LimitExceeded, match=r"pixels.*allowed.*make a smaller copy"):
            load_image(tmp_path / name, VideoLimits())
