"""The clips of a synthetic set: its configuration, and the world and the questions of each clip of shapes."""

from __future__ import annotations

import base64
import hashlib
import random
from dataclasses import dataclass, field
from typing import Literal

from mmllm.errors import ConfigError
from mmllm.fields import LARGEST, closest, require
from mmllm.synthetic.questions import (
    ACTION_FAMILIES,
    FAMILIES,
    SOUND_FAMILIES,
    SPATIAL_FAMILIES,
    ClipQuestion,
    ask,
)
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.synthetic.things.questions import FAMILIES as THINGS_FAMILIES
from mmllm.synthetic.world import World
from mmllm.synthetic.world_sampling import WORLDS, sample_world

Split = Literal["train", "val"]
THINGS = "things"
"""The world of named pictures; the other ones show coloured shapes."""
_SIDES = {THINGS: 128}
_SIDE = 64


def families_of(world: str) -> tuple[str, ...]:
    """The kinds of questions that a world can be asked, those about sound last."""
    return tuple(THINGS_FAMILIES if world == THINGS else FAMILIES)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The configuration of a synthetic set. Two sets of the same configuration are equal."""

    seed: int = 0
    train_videos: int = 800
    val_videos: int = 100
    world: str = "easy"
    """basic: 2-3 things of 4 colours and 3 shapes, with 4 actions that are quickly learned. easy: the same with 6
    actions. full: 2-4 things of 6 colours and 4 shapes, with 10 actions. hard: full, with an unsteady camera. scenes:
    basic with 3-4 things, cut into 5-8 scenes of very different lengths; things come and go at cuts. things: pictures
    with names, over textures or photographs."""
    size: int = 0
    """Side of a frame in pixels; 0 for the world's own: 64, and 128 for things."""
    fps: int = 5
    min_duration_s: float = 20.0
    max_duration_s: float = 60.0
    questions_per_video: int = 8
    """The highest number. A clip has fewer if there is not enough to ask about it."""
    families: tuple[str, ...] = ("all",)
    """The kinds of questions; `all` for each one of the world that needs no sound. Digits are shown only if `digit` is
    among them, and clips have sound only with `sound`."""
    crf: int = 26
    """Quality of the H.264 encoding: 0 is lossless, 51 the worst."""
    things: ThingsConfig = field(default_factory=ThingsConfig)
    """The pictures of the world `things`."""

    def __post_init__(self) -> None:
        require(abs(self.seed) < LARGEST, self, "seed", "between -2 ** 63 and 2 ** 63")
        for name in ("train_videos", "val_videos"):
            require(0 <= getattr(self, name) <= 10_000_000, self, name, "between 0 and 10 million clips")
        require(self.world in (*WORLDS, THINGS), self, "world", f"one of {', '.join((*WORLDS, THINGS))}")
        if self.size == 0:
            object.__setattr__(self, "size", _SIDES.get(self.world, _SIDE))
        require(self.size % 2 == 0 and 32 <= self.size <= 1024, self, "size", "even, from 32 to 1024 pixels")
        require(1 <= self.fps <= 60, self, "fps", "from 1 to 60 frames a second")
        require(self.min_duration_s >= 8.0, self, "min_duration_s", "at least 8 seconds")
        longest = "from min_duration_s to an hour"
        require(self.min_duration_s <= self.max_duration_s <= 3600, self, "max_duration_s", longest)
        require(self.questions_per_video >= 1, self, "questions_per_video", "at least 1")
        require(0 <= self.crf <= 51, self, "crf", "from 0 to 51")
        if self.families == ("all",):
            silent = (name for name in families_of(self.world) if name not in SOUND_FAMILIES)
            object.__setattr__(self, "families", tuple(silent))
        self._check_families(families_of(self.world))

    def _check_families(self, choices: tuple[str, ...]) -> None:
        require(len(self.families) > 0, self, "families", f"at least one of {', '.join(choices)}")
        require(len(set(self.families)) == len(self.families), self, "families", "different from each other")
        for family in self.families:
            if family not in choices:
                known = f"the world {self.world!r}; {closest(family, choices)}"
                raise ConfigError(f"SyntheticConfig.families has no {family!r} in {known}")

    def videos(self, split: Split) -> int:
        """How many clips a split has."""
        return self.train_videos if split == "train" else self.val_videos


def clip(config: SyntheticConfig, split: Split, index: int) -> tuple[World, list[ClipQuestion]]:
    """The world of shapes and the questions of a clip. They are the same at each call and on each machine.

    For clips of things see `mmllm.synthetic.things.clips`.

    Up to eight worlds are drawn. The one with questions of most families is taken.
    """
    random_state = random.Random(f"{config.seed}/{split}/{index}")
    max_families = min(config.questions_per_video, len(config.families))
    best: tuple[int, World, list[ClipQuestion]] | None = None
    for _ in range(8):
        world = fresh_world(config, random_state)
        questions, pool_sizes = ask(world, random_state, config.families, config.questions_per_video)
        families_with_questions = min(sum(size > 0 for size in pool_sizes.values()), max_families)
        if best is None or families_with_questions > best[0]:
            best = (families_with_questions, world, questions)
        if families_with_questions == max_families:
            break
    assert best is not None
    return best[1], best[2]


def fresh_world(config: SyntheticConfig, random_state: random.Random) -> World:
    """A newly drawn world of shapes, of the kind that the clips of `config` show.

    Raises:
        ConfigError: if they show things instead.
    """
    if config.world == THINGS:
        raise ConfigError(
            f"SyntheticConfig.world = {THINGS!r}: pre-training on single scenes or sounds needs a world of shapes: "
            f"{', '.join(WORLDS)}; leave that stage out, or take weights that are trained"
        )
    return sample_world(
        random_state,
        WORLDS[config.world],
        fps=config.fps,
        shortest_s=config.min_duration_s,
        longest_s=config.max_duration_s,
        digits="digit" in config.families,
        actions=any(family in ACTION_FAMILIES or family in SPATIAL_FAMILIES for family in config.families),
        sounds=any(family in SOUND_FAMILIES for family in config.families),
    )


def video_id(config: SyntheticConfig, split: Split, index: int) -> str:
    """The clip's id: 11 characters of the same alphabet as ActivityNet's ids."""
    digest = hashlib.sha256(f"mmllm synthetic {config.seed}/{split}/{index}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:11]
