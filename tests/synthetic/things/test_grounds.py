"""Grounds: textures, and frames of a folder's pictures and videos."""

import numpy as np
import pytest
from PIL import Image

from mmllm.errors import InputError
from mmllm.synthetic.rendering import encode
from mmllm.synthetic.things.grounds import Grounds
from mmllm.synthetic.things.textures import SEEN, UNSEEN, texture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("grounds")
    generator = np.random.default_rng(0)
    for name in ("one.png", "two.jpg", "three.webp"):
        Image.fromarray(generator.integers(0, 256, size=(60, 90, 3), dtype=np.uint8)).save(root / name)
    frames = np.full((20, 64, 64, 3), 200, dtype=np.uint8)
    encode(iter([frames]), 64, 5, root / "bright.mp4", crf=20)
    (root / "notes.txt").write_text("not a picture")
    return root


@pytest.mark.parametrize("name", [*SEEN, *UNSEEN])
def test_a_texture_depends_on_its_seed_and_is_muted(name):
    first = texture(name, 3, 96)
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, texture(name, 3, 96))
    assert not np.array_equal(first, texture(name, 4, 96))
    assert 3 < first.std() < 80


def test_textures_for_evaluation_are_other_kinds():
    grounds = Grounds(None)
    assert not set(grounds.seen) & set(grounds.unseen)
    assert grounds.picture("clouds", 1, 50).size == (50, 50)


def test_a_folder_gives_parts_of_its_pictures_and_videos(folder):
    grounds = Grounds(folder)
    assert {*grounds.seen, *grounds.unseen} == {"one.png", "two.jpg", "three.webp", "bright.mp4"}
    assert not set(grounds.seen) & set(grounds.unseen)
    for name in (*grounds.seen, *grounds.unseen):
        picture = np.asarray(grounds.picture(name, 5, 40))
        assert picture.shape == (40, 40, 3)
        assert np.array_equal(picture, grounds.picture(name, 5, 40))
    assert abs(np.asarray(grounds.picture("bright.mp4", 5, 40)).mean() - 200) < 6


def test_what_cannot_be_a_ground_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="missing"):
        Grounds(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has 0 pictures"):
        Grounds(tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "b.mp4").write_text("no video")
    grounds = Grounds(tmp_path)
    for name in ("a.png", "b.mp4"):
        with pytest.raises(InputError, match=f"{name}: cannot be a ground"):
            grounds.picture(name, 0, 32)
