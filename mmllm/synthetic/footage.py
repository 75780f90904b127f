"""What a clip of any world consists of: its questions as rows of annotations, its frames and its sound.

F frames, S side of a frame
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmllm.synthetic.clips import THINGS, Split, SyntheticConfig, clip
from mmllm.synthetic.drawing import draw_pieces
from mmllm.synthetic.sounds import Sounding, soundtrack
from mmllm.synthetic.world import SceneSpan


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """A clip before it is drawn."""

    world: Sounding
    pairs: list[dict[str, Any]]
    """Its questions, as in the training file."""
    pieces: Callable[[], Iterator[np.ndarray]]
    """Gives its frames in order, in pieces: each is uint8 (F S S 3), RGB."""
    on_screen: dict[str, list[SceneSpan]] | None = None
    """When each name is on screen, for a world of things."""

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return self.world.duration_s

    def sound(self) -> np.ndarray | None:
        """float32, mono at 16 kHz; None if the clip has no sound."""
        return soundtrack(self.world) if self.world.sounds else None


def footage_of(config: SyntheticConfig, split: Split, index: int) -> Footage:
    """A clip by its number; it is the same at each call.

    Raises:
        InputError: if the pictures or grounds of a world of things are missing.
    """
    if config.world == THINGS:
        return _of_things(config, split, index)
    world, questions = clip(config, split, index)
    pairs = [{"q": question.question, "a": question.answer, "family": question.family} for question in questions]
    return Footage(world=world, pairs=pairs, pieces=partial(draw_pieces, world, config.size))


def require_sources(config: SyntheticConfig) -> None:
    """Refuses a set whose pictures or grounds are missing.

    Raises:
        InputError: if they are.
    """
    if config.world == THINGS:
        from mmllm.synthetic.things.clips import sources_of

        sources_of(config)


def _of_things(config: SyntheticConfig, split: Split, index: int) -> Footage:
    from mmllm.synthetic.things import drawing
    from mmllm.synthetic.things.clips import sources_of, things_clip

    made = things_clip(config, split, index)
    pairs = [question.to_json(made.group) for question in made.questions]
    pictures, grounds = sources_of(config)
    pieces = partial(drawing.draw_pieces, made.staging, pictures, grounds, config.size)
    return Footage(world=made.staging.world, pairs=pairs, pieces=pieces, on_screen=made.staging.on_screen)
