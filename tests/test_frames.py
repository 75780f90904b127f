import numpy as np
import pytest
from PIL import Image

from mmllm.errors import ConfigError
from mmllm.frames import FrameTransform


def frames(height, width, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 57), (24, 24)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_every_shape_becomes_the_square(size, fit):
    out = FrameTransform(size=24, fit=fit)(frames(*size))
    assert out.shape == (2, 3, 24, 24)
    assert out.dtype == np.float32


def test_cropping_equals_the_processor_of_transformers():
    from transformers import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    given = frames(50, 71)
    wanted = theirs([Image.fromarray(frame) for frame in given], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(FrameTransform(size=24)(given), wanted, rtol=0, atol=1e-5)


def test_padding_adds_the_mean_colour_around_the_whole_frame():
    given = np.zeros((1, 10, 40, 3), np.uint8)
    out = FrameTransform(size=40, fit="pad", mean=(0.5, 0.25, 0.75), std=(1.0, 1.0, 1.0)).resized(given[0])
    assert out[0, 0].tolist() == [127, 63, 191]
    assert out[15:25].max() == 0
    assert (out[:15] == [127, 63, 191]).all()


def test_no_frames_and_bad_constants():
    assert FrameTransform(size=8)(frames(4, 4, 0)).shape == (0, 3, 8, 8)
    with pytest.raises(ConfigError, match="size = 0"):
        FrameTransform(size=0)
    with pytest.raises(ConfigError, match="std"):
        FrameTransform(size=4, std=(1.0, 0.0, 1.0))
