"""Pictures in memory give the pixels of their bytes, whatever holds them; anything ambiguous is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmllm.errors import InputError
from mmllm.preprocessing.frames import read_image
from mmllm.preprocessing.pixels import rgb, rgb_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
SAME = {
    "bytes": PIXELS,
    "floats from 0 to 1": PIXELS / 255.0,
    "half precision": (PIXELS / 255.0).astype(np.float16),
    "floats from 0 to 255": PIXELS.astype(np.float32),
    "64-bit whole numbers": PIXELS.astype(np.int64),
    "16 bits": PIXELS.astype(np.uint16) * 257,
    "bytes in 16 bits": PIXELS.astype(np.uint16),
    "channels first": PIXELS.transpose(2, 0, 1),
    "tensor": torch.from_numpy(PIXELS),
    "tensor, channels first": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "float tensor with a gradient": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
    "opaque RGBA": np.dstack([PIXELS, np.full_like(GREY, 255)]),
    "PIL": Image.fromarray(PIXELS),
    "PIL with alpha": Image.fromarray(PIXELS).convert("RGBA"),
}
SAME_GREY = {
    "array": GREY,
    "with an axis": GREY[..., None],
    "axis first": GREY[None],
    "tensor": torch.from_numpy(GREY) / 255,
    "PIL L": Image.fromarray(GREY),
    "PIL LA": Image.fromarray(GREY).convert("LA"),
    "PIL I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I": Image.fromarray(GREY.astype(np.int32)),
    "PIL F": Image.fromarray((GREY / 255).astype(np.float32)),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_what_its_bytes_give(form):
    np.testing.assert_array_equal(rgb(SAME[form]), PIXELS)
    np.testing.assert_array_equal(read_image(SAME[form]), PIXELS)


@pytest.mark.parametrize("form", SAME_GREY)
def test_grey_is_all_three_colours(form):
    np.testing.assert_array_equal(rgb(SAME_GREY[form]), np.repeat(GREY[..., None], 3, axis=2))


def test_truth_values_are_black_and_white():
    np.testing.assert_array_equal(rgb(GREY > 100)[..., 1], np.where(GREY > 100, 255, 0))
    np.testing.assert_array_equal(rgb(Image.fromarray(GREY > 100))[..., 1], np.where(GREY > 100, 255, 0))


def test_transparent_pixels_are_laid_on_black():
    alpha = np.zeros_like(GREY)
    alpha[:, 10:20], alpha[:, 20:] = 255, 51
    expected = np.rint(PIXELS * (alpha[..., None] / 255))
    for form in (np.dstack([PIXELS, alpha]), Image.fromarray(np.dstack([PIXELS, alpha]))):
        assert np.abs(rgb(form) - expected).max() <= 1
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.info["transparency"] = 0
    assert (rgb(palette)[np.asarray(palette) == 0] == 0).all()


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV"])
def test_modes_of_pil_are_converted(mode):
    image = Image.fromarray(PIXELS).quantize(256) if mode == "P" else Image.fromarray(PIXELS).convert(mode)
    np.testing.assert_array_equal(rgb(image), np.asarray(image.convert("RGB")))


def test_an_image_is_turned_upright_in_memory_and_on_disk(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(PIXELS, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright)
    np.testing.assert_array_equal(rgb(Image.open(tmp_path / "turned.png")), upright)


def test_a_dark_frame_is_read_like_the_others_of_its_video():
    dark, light = np.full((4, 4, 3), 0.5, np.float32), np.full((4, 4, 3), 200.0, np.float32)
    assert rgb(dark).max() == 128
    assert [picture.max() for picture in rgb_pictures([dark, light])] == [0, 200]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (PIXELS / 127.5 - 1, "from -1 to 1"),
        (PIXELS / 255.0 * 1.5, "from 0 to 1.5"),
        (PIXELS * 2.0, "float pixels must be"),
        (np.where(PIXELS > 100, np.nan, 0.5), "from nan to nan"),
        (PIXELS.astype(np.int32) - 5, "int32 must be from 0 to 255"),
        (PIXELS.astype(np.int64) * 1000, "or to 65535"),
        (PIXELS.astype(complex), "not complex128"),
        (np.zeros((3, 20, 30, 3), np.uint8), r"not \(3, 20, 30, 3\)"),
        (np.zeros((20, 30, 7), np.uint8), "1, 3 or 4 colours"),
        (np.zeros((0, 30, 3), np.uint8), r"not \(0, 30, 3\)"),
        (7, "an image is a path, bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_numbers(picture, message):
    with pytest.raises(InputError, match=message):
        read_image(picture)
