"""The clips of a synthetic set: which world and which questions stand behind a number."""

from __future__ import annotations

import base64
import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from mmllm.errors import ConfigError
from mmllm.fields import closest, require
from mmllm.synthetic.questions import ACTION_FAMILIES, FAMILIES, SPATIAL_FAMILIES, ClipQuestion, ask
from mmllm.synthetic.world import World
from mmllm.synthetic.world_sampling import WORLDS, sample_world

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What a synthetic set is made from; two sets of one config are the same."""

    seed: int = 0
    train_videos: int = 800
    val_videos: int = 100
    world: str = "easy"
    """basic: 2-3 things of 4 colours and 3 shapes with 4 actions that are soon learned to see. easy: with 6 actions.
    full: 2-4 of 6 and 4 with 10. hard: full, with an unsteady camera."""
    size: int = 64
    """Side of a frame in pixels."""
    fps: int = 5
    min_duration_s: float = 20.0
    max_duration_s: float = 60.0
    questions_per_video: int = 8
    """At most; a clip of which less can be asked has fewer."""
    families: tuple[str, ...] = tuple(FAMILIES)
    """The kinds of question that are asked. Digits are shown only if `digit` is among them."""
    crf: int = 26
    """Quality of the H.264 encoding: 0 is lossless, 51 the worst."""

    def __post_init__(self) -> None:
        for field in ("train_videos", "val_videos"):
            require(0 <= getattr(self, field) <= 10_000_000, self, field, "between 0 and 10 million clips")
        require(self.world in WORLDS, self, "world", f"one of {', '.join(WORLDS)}")
        require(self.size % 2 == 0 and 32 <= self.size <= 1024, self, "size", "even, from 32 to 1024 pixels")
        require(1 <= self.fps <= 60, self, "fps", "from 1 to 60 frames a second")
        require(self.min_duration_s >= 8.0, self, "min_duration_s", "at least 8 seconds")
        longest = "from min_duration_s to an hour"
        require(self.min_duration_s <= self.max_duration_s <= 3600, self, "max_duration_s", longest)
        require(self.questions_per_video >= 1, self, "questions_per_video", "at least 1")
        require(len(self.families) > 0, self, "families", f"at least one of {', '.join(FAMILIES)}")
        require(len(set(self.families)) == len(self.families), self, "families", "different from each other")
        for family in self.families:
            if family not in FAMILIES:
                raise ConfigError(f"SyntheticConfig.families has no {family!r}; {closest(family, FAMILIES)}")
        require(0 <= self.crf <= 51, self, "crf", "from 0 to 51")

    def videos(self, split: Split) -> int:
        """How many clips a split has."""
        return self.train_videos if split == "train" else self.val_videos


def clip(config: SyntheticConfig, split: Split, index: int) -> tuple[World, list[ClipQuestion]]:
    """The world of one clip and what is asked about it, the same at each call and on each machine.

    Of a few worlds the one is taken in which most of the families find a question.
    """
    random_state = random.Random(f"{config.seed}/{split}/{index}")
    wanted = min(config.questions_per_video, len(config.families))
    best: tuple[int, World, list[ClipQuestion]] | None = None
    for _ in range(8):
        world = fresh_world(config, random_state)
        questions, offered = ask(world, random_state, config.families, config.questions_per_video)
        served = min(sum(number > 0 for number in offered.values()), wanted)
        if best is None or served > best[0]:
            best = (served, world, questions)
        if served == wanted:
            break
    assert best is not None
    return best[1], best[2]


def fresh_world(config: SyntheticConfig, random_state: random.Random) -> World:
    """A world as the clips of `config` show them."""
    return sample_world(
        random_state,
        WORLDS[config.world],
        fps=config.fps,
        shortest_s=config.min_duration_s,
        longest_s=config.max_duration_s,
        digits="digit" in config.families,
        actions=any(family in ACTION_FAMILIES or family in SPATIAL_FAMILIES for family in config.families),
    )


def video_id(config: SyntheticConfig, split: Split, index: int) -> str:
    """The clip's name of 11 characters, in the alphabet of ActivityNet's."""
    digest = hashlib.sha256(f"mmllm synthetic {config.seed}/{split}/{index}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:11]
