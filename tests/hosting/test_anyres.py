"""Tokens of images in tiles, against transformers' own packing: a newline is a 1 among zeros."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmllm.hosting.anyres import tiled_image

PINPOINTS = [[a, b] for a in (24, 48, 72, 96) for b in (24, 48, 72, 96)]
CONFIG = SimpleNamespace(image_grid_pinpoints=PINPOINTS, vision_config=SimpleNamespace(image_size=24, patch_size=4))


def packed(model_class, size, **options):
    """bool: which tokens of an image are newlines, as transformers packs them."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, PINPOINTS)
    tiles = torch.zeros(1 + height // 24 * (width // 24), 36, 1)
    image = [model_class.pack_image_features(SimpleNamespace(config=CONFIG), [tiles], [size], **options)[0][0]]
    return image[0].squeeze(-1) == 1


sizes = st.tuples(st.integers(3, 300), st.integers(3, 300))


@given(sizes)
def test_tiles_of_llava_next(size):
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    options = {"vision_feature_select_strategy": "default", "image_newline": torch.ones(1)}
    assert torch.equal(tiled_image(CONFIG, size).fixed, packed(LlavaNextModel, size, **options))


@pytest.mark.parametrize("most", [2, 9])
@given(size=sizes)
def test_tiles_of_llava_onevision_shrink_above_an_area(most, size):
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    options = {"vision_aspect_ratio": f"anyres_max_{most}", "image_newline": torch.ones(1)}
    expected = packed(LlavaOnevisionModel, size, **options)
    assert torch.equal(tiled_image(CONFIG, size, most_tiles=most).fixed, expected)


def test_newlines_have_no_place():
    medium = tiled_image(CONFIG, (24, 48))
    assert (medium.frames, medium.grid, medium.count) == (1, None, 36 + 6 * 13)
    assert medium.fixed.sum() == 6
    assert torch.equal(medium.frame_of == -1, medium.fixed)
