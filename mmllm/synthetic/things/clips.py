"""The clips of a set of things: world, staging and questions of each clip, by its number."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from pathlib import Path

from mmllm.synthetic.clips import Split, SyntheticConfig
from mmllm.synthetic.questions import SOUND_FAMILIES
from mmllm.synthetic.things.content import Content, ThingsQuestion
from mmllm.synthetic.things.grounds import Grounds
from mmllm.synthetic.things.pictures import PictureSet, picture_set
from mmllm.synthetic.things.questions import ask
from mmllm.synthetic.things.sampling import Stock, sample_things
from mmllm.synthetic.things.staging import Staging, staged

GROUPS = ("seen", "unseen names", "unseen grounds")
"""What a clip shows: names and grounds of training; names that no training clip has; or grounds that none has.
Training clips are of the first group, validation clips of each in turn."""
_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class ThingsClip:
    """A clip before it is drawn."""

    staging: Staging
    questions: list[ThingsQuestion]
    group: str
    """One of `GROUPS`."""


def things_clip(config: SyntheticConfig, split: Split, index: int) -> ThingsClip:
    """A clip by its number. With the same pictures and grounds it is the same at each call and on each machine.

    A few worlds are drawn. The one with questions of most families is taken.

    Raises:
        InputError: if the pictures or the grounds are missing.
    """
    random_state = random.Random(f"{config.seed}/things/{split}/{index}")
    group = GROUPS[0] if split == "train" else GROUPS[index % len(GROUPS)]
    pictures, grounds = sources_of(config)
    names = pictures.unseen if group == "unseen names" else pictures.seen
    stock = Stock(
        names=names,
        grounds=grounds.unseen if group == "unseen grounds" else grounds.seen,
        solid=pictures.solid,
    )
    most = min(config.questions_per_video, len(config.families))
    best: tuple[int, ThingsClip] | None = None
    for _ in range(_ATTEMPTS):
        world = sample_things(
            random_state,
            stock,
            fps=config.fps,
            shortest_s=config.min_duration_s,
            longest_s=config.max_duration_s,
            sounds=any(family in SOUND_FAMILIES for family in config.families),
        )
        staging = staged(world, pictures)
        content = Content(staging=staging, pool=names, random_state=random_state)
        questions, families = ask(content, config.families, config.questions_per_video)
        if best is None or families > best[0]:
            best = (families, ThingsClip(staging=staging, questions=questions, group=group))
        if families >= most:
            break
    assert best is not None
    return best[1]


def sources_of(config: SyntheticConfig) -> tuple[PictureSet, Grounds]:
    """The pictures and the grounds of a configuration; they are opened once.

    Raises:
        InputError: if they are missing.
    """
    return picture_set(config.things.pictures), _grounds(config.things.grounds)


@functools.cache
def _grounds(folder: str | None) -> Grounds:
    return Grounds(None if folder is None else Path(folder))
