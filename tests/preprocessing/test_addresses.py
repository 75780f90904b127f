"""Bytes inside an address, `file://` and base64 give what the file gives."""

import base64
import io
from urllib.parse import quote, quote_from_bytes

import numpy as np
import pytest
from PIL import Image

from mmllm.errors import InputError
from mmllm.preprocessing import addresses
from mmllm.preprocessing.addresses import from_base64, resolved
from mmllm.preprocessing.frames import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    return file.getvalue()


def test_every_address_of_an_image_is_read(data, tmp_path):
    path = tmp_path / "a picture%.png"
    path.write_bytes(data)
    letters = base64.b64encode(data).decode()
    sources = [
        path,
        str(path),
        data,
        io.BytesIO(data),
        f"file://{quote(str(path))}",
        f"file://localhost{quote(str(path))}",
        f"data:image/png;base64,{letters}",
        f"DATA:;base64,{quote(letters)}",
        f"data:image/png,{quote_from_bytes(data)}",
        letters,
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        "\n".join(letters[i : i + 76] for i in range(0, len(letters), 76)),
    ]
    for source in sources:
        np.testing.assert_array_equal(read_image(source), PIXELS)
    assert from_base64(letters) == from_base64(letters.encode()) == from_base64(f"data:;base64,{letters}") == data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:image/png;base64", "there is no comma"),
        ("data:image/png;base64,???", "not base64"),
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png,hello", "cannot read image <5 bytes>|not a readable image"),
        ("file://elsewhere/clip.png", "a file of this machine"),
        ("https://example.com/a.png", "addresses are not fetched"),
        ("A" * 301, "not base64|cannot read"),
        ("no such file.png", "cannot read image no such file.png"),
    ],
)
def test_what_cannot_be_read_is_named(source, message):
    with pytest.raises(InputError, match=message):
        read_image(source)


def test_a_large_address_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(addresses, "MOST_BYTES", 1 << 20)
    for source in ("data:;base64," + "A" * (2 << 20), "data:," + "A" * (2 << 20), "A" * (2 << 20)):
        with pytest.raises(InputError, match="of 1 MiB inside an address; allowed are 1"):
            resolved(source)


def test_other_sources_are_left_alone():
    for source in ("clip.mp4", "a" * 300 + ".mp4", 3, b"bytes", "https://example.com/clip.mp4"):
        assert resolved(source) == source
