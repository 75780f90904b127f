"""How many tokens the LLM reads of each frame, from the shape of a video alone, before anything of it is decoded.

An engine such as vLLM reserves a place in the prompt for each of them, and encodes the video later.
"""

from __future__ import annotations

from typing import Any

import torch

from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError
from mmllm.interfaces import Encoder, Grid, TokenReducer
from mmllm.pruning.needs import by_place
from mmllm.stages import build, stages_of

Counts = list[int] | int
"""The number of each frame; or of the whole video, if what is shown decides how frames share it."""


class VisualCounts:
    """The counts of a model on the `plain` path.

    Args:
        config: of the model. Its parts are built without weights.
    """

    def __init__(self, config: MmllmConfig) -> None:
        with torch.device("meta"):
            self.parts: dict[str, Any] = build(
                stages_of(config), config.text_config.hidden_size, decoder=config.text_config
            )

    def of_video(self, frames: int) -> Counts:
        """Tokens of a video of so many frames.

        Raises:
            ConfigError: naming a reducer whose count the video decides.
            InputError: if a budget does not fit so many frames.
        """
        return self._after_all(self.parts["encoder"], frames)

    def of_image(self) -> int:
        """Tokens of a still image, seen whole; raises what `of_video` raises."""
        return total(self._after_all(self.parts["image_encoder"] or self.parts["encoder"], 1))

    def _after_all(self, encoder: Encoder, frames: int) -> Counts:
        """The encoder's tokens after the reducers and the projector."""
        in_front, behind = by_place(self.parts["reducers"])
        counts: Counts = [encoder.tokens_per_frame] * frames
        grid = encoder.grid
        for reducer in in_front:
            counts, grid = _after(reducer, counts, frames, grid), reducer.grid_after(grid)
        projector = self.parts["visual_tokenizer"]
        if isinstance(counts, list):
            counts = [projector.token_count(count) for count in counts]
        elif projector.token_count(encoder.tokens_per_frame) != encoder.tokens_per_frame:
            raise ConfigError(
                f"visual_tokenizer {projector.registered_name!r} makes tokens of each frame anew, and in front of it "
                "frames share a budget by what they show: choose a reducer that gives every frame its own"
            )
        grid = projector.grid_after(grid)
        for reducer in behind:
            counts, grid = _after(reducer, counts, frames, grid), reducer.grid_after(grid)
        return counts


def total(counts: Counts) -> int:
    """The tokens of a whole video."""
    return sum(counts) if isinstance(counts, list) else counts


def _after(reducer: TokenReducer, counts: Counts, frames: int, grid: Grid) -> Counts:
    """The counts after a reducer.

    Raises:
        ConfigError: if it cannot tell.
    """
    name = reducer.registered_name
    if not isinstance(counts, list) or len(set(counts)) != 1:
        raise ConfigError(f"reducer {name!r} stands behind one that leaves unequal frames: its count cannot be told")
    after = reducer.counts_by_shape(counts[0], frames, grid)
    if after is None:
        raise ConfigError(
            f"reducer {name!r} cannot tell from the shape of a video how many tokens remain, and an engine must know "
            "before it sees the video: `mmllm list reducers` says which can"
        )
    return after
