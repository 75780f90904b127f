"""Dropped patches are dark where they are, and the picture is written."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmllm import registry
from mmllm.errors import InputError
from mmllm.frames import FrameTransform
from mmllm.pruning.overlay import DIMMED, dimmed, enlarged, save_overlay
from mmllm.tokens import VisualTokens


def test_patches_cover_their_pixels():
    patches = np.arange(6).reshape(1, 2, 3)
    assert np.array_equal(enlarged(patches, 6)[0], np.kron(patches[0], np.ones((3, 2))))
    assert enlarged(patches, 7).shape == (1, 7, 7)


def test_dimming():
    frames = np.full((1, 8, 8, 3), 200, dtype=np.uint8)
    kept = np.array([[[True, False], [False, True]]])
    out = dimmed(frames, kept)[0]
    assert (out[:4, :4] == 200).all()
    assert (out[:4, 4:] == 200 * DIMMED).all()
    assert (out[4:, 4:] == 200).all()
    with pytest.raises(InputError, match="do not belong together"):
        dimmed(frames[:, :4], kept)


def tokens():
    scores = torch.rand(1, 3, 16, generator=torch.Generator().manual_seed(0))
    return VisualTokens(features=torch.zeros(1, 3, 16, 2), grid=(4, 4), scores={"cls_attention": scores})


@pytest.mark.parametrize("score", [None, "cls_attention"])
def test_picture(tmp_path, score):
    before = tokens()
    after = registry.build("reducer", "fastervlm:keep=5")(before)
    frames = np.random.default_rng(0).integers(0, 255, (3, 20, 40, 3), dtype=np.uint8)
    path = save_overlay(frames, before, after, tmp_path / "kept.png", transform=FrameTransform(size=16), score=score)
    image = np.asarray(Image.open(path))
    assert image.shape[0] > 200
    assert image.std() > 10


def test_bad_input(tmp_path):
    before, transform = tokens(), FrameTransform(size=16)
    frames = np.zeros((3, 20, 40, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="'mean_attention'; these tokens carry cls_attention"):
        save_overlay(frames, before, before, tmp_path / "x.png", transform=transform, score="mean_attention")
    with pytest.raises(InputError, match="1D tokens"):
        save_overlay(frames, before, before.replace(grid=None), tmp_path / "x.png", transform=transform)
    with pytest.raises(InputError, match="cannot write"):
        save_overlay(frames, before, before, tmp_path / "x.nonsense", transform=transform)
