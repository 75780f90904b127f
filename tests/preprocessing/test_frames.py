import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmllm.errors import ConfigError
from mmllm.fields import from_mapping
from mmllm.preprocessing.frames import FrameTransform


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
    expected = theirs([Image.fromarray(frame) for frame in given], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(FrameTransform(size=24)(given), expected, rtol=0, atol=1e-5)


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


def clip(height, width, count=3):
    """Frames with edges of all directions and noise, so that resizing has something to get wrong."""
    generator = np.random.default_rng(height * width)
    coarse = generator.integers(0, 256, (count, 9, 11, 3), dtype=np.uint8)
    sharp = [Image.fromarray(one).resize((width, height), Image.Resampling.NEAREST) for one in coarse]
    noise = generator.integers(-20, 21, (count, height, width, 3))
    return np.clip(np.stack([np.asarray(one) for one in sharp]) + noise, 0, 255).astype(np.uint8)


HALF = (0.5, 0.5, 0.5)


def defaults():
    """Model -> transformers' default processor for it, and our transform."""
    from transformers import CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

    def square(side):
        return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}

    siglip = {"size": {"height": 38, "width": 38}, "resample": 3, "image_mean": HALF, "image_std": HALF}
    bare = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return {
        "clip": (CLIPImageProcessor(**square(33)), FrameTransform(size=33)),
        "siglip": (SiglipImageProcessor(**siglip), FrameTransform(size=38, fit="squash", mean=HALF, std=HALF)),
        "llava": (LlavaImageProcessor(do_pad=True, **square(33)), FrameTransform(size=33, fit="pad")),
        "fastvlm": (
            LlavaImageProcessor(do_pad=True, **square(64), **bare),
            FrameTransform(size=64, fit="pad", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        ),
    }


@pytest.mark.parametrize("model", ["clip", "siglip", "llava", "fastvlm"])
@pytest.mark.parametrize("shape", [(36, 64), (97, 61), (24, 32), (80, 80), (33, 33), (20, 170)])
def test_video_frames_equal_the_default_processor_of_transformers(model, shape):
    theirs, ours = defaults()[model]
    frames = clip(*shape)
    expected = theirs(list(frames), return_tensors="np")["pixel_values"]
    got = ours.video(frames)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    far = np.abs(got - expected) * 255 * np.array(ours.std, dtype=np.float32)[:, None, None]
    assert far.max() <= 2.01
    assert far.mean() <= 0.25


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(36, 64), (97, 61), (48, 854), (21, 40)])
def test_video_frames_are_within_a_step_or_two_of_pil(fit, shape):
    transform, frames = FrameTransform(size=28, fit=fit), clip(*shape)
    for frame in frames:
        quick, exact = transform.video_frame(frame), transform.resized(frame)
        assert quick.shape == exact.shape == (28, 28, 3)
        far = np.abs(quick.astype(int) - exact)
        assert far.max() <= 2
        assert far.mean() <= 0.25
    np.testing.assert_allclose(
        transform.video(frames), transform.normalised([transform.video_frame(one) for one in frames]), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (97, 64), (25, 50), (49, 51), (400, 17)])
def test_what_is_cut_off_need_not_be_resized(shape):
    frame = clip(*shape, count=1)[0]
    quick = FrameTransform(size=24).video_frame(frame)
    height, width = (24 * length // min(shape) for length in shape)
    pixels = torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(0)
    whole = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    top, left = (height - 24) // 2, (width - 24) // 2
    expected = whole[0, :, top : top + 24, left : left + 24].permute(1, 2, 0).numpy()
    assert np.abs(quick.astype(int) - expected).max() <= 1


def test_video_frames_can_be_resized_by_pil():
    frames = clip(36, 64)
    exact = FrameTransform(size=24, video_resize="pil")
    assert np.array_equal(exact.video(frames), FrameTransform(size=24)(frames))
    with pytest.raises(ConfigError, match="video_resize"):
        from_mapping(FrameTransform, {"size": 24, "video_resize": "quick"})


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(3, 401), (397, 5), (64, 300), (220, 96), (1, 90), (40, 40)])
def test_long_narrow_frames_are_resized_without_a_large_picture_between(fit, shape, interpolation, monkeypatch):
    transform, frame = FrameTransform(size=28, fit=fit, interpolation=interpolation), clip(*shape, count=1)[0]
    exact = transform.resized(frame)
    monkeypatch.setattr("mmllm.preprocessing.frames._MOST_PIXELS", 0)
    small = transform.resized(frame)
    far = np.abs(small.astype(int) - exact)
    # columns of a tall frame are padded behind the first of PIL's two passes, which cuts off what overshoots
    assert far.max() <= (4 if fit == "pad" and shape[0] > shape[1] else 1)
    assert far.mean() <= 0.1
    assert np.array_equal(transform.video_frame(frame), small)


MEASURED = """
import resource
import numpy as np
from mmllm.preprocessing.frames import FrameTransform

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

for shape in [(60_000, 1), (1, 60_000), (2, 16_000), (16_000, 16), (40, 1_000_000)]:
    frame = np.zeros((*shape, 3), np.uint8)
    for fit in ("crop", "pad", "squash"):
        transform, before = FrameTransform(size=336, fit=fit), peak()
        assert transform.resized(frame).shape == transform.video_frame(frame).shape == (336, 336, 3)
        print(fit, *shape, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are counted in KiB on Linux")
def test_memory_stays_bounded_whatever_the_shape():
    lines = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True).stdout
    grown = {line: int(line.split()[-1]) for line in lines.splitlines()}
    assert len(grown) == 15
    assert max(grown.values()) < 300 * 1024, grown


def test_frames_that_cannot_be_written_to():
    frames = clip(36, 64)
    frames.flags.writeable = False
    assert FrameTransform(size=24).video(frames).shape == (3, 3, 24, 24)
    assert FrameTransform(size=24, fit="pad").video(frames).shape == (3, 3, 24, 24)
    assert FrameTransform(size=8).video(frames[:0]).shape == (0, 3, 8, 8)
