"""A folder of named pictures with transparency, so that no test needs a package of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.things.config import ThingsConfig

NAMES = (
    "apple kite lamp drum boat tree fish owl ant cup bell key fire_engine hat leaf moon nut oak pear ring sun tent urn "
    "van"
).split()


def write_pictures(folder: Path, names=NAMES) -> Path:
    """Solid discs and squares of different colours, 40 x 40 with an empty rim."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        picture = Image.new("RGBA", (40, 40))
        color = (40 + 37 * number % 200, 250 - 53 * number % 220, 71 * number % 256, 255)
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if number % 2 else draw.rectangle)((4, 4, 35, 35), fill=color)
        picture.save(folder / f"{name}.png")
    return folder


def things_config(folder: Path, **settings) -> SyntheticConfig:
    """Clips of the pictures in a folder."""
    return SyntheticConfig(world="things", things=ThingsConfig(pictures=str(folder)), **settings)


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory) -> Path:
    """24 pictures."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))
