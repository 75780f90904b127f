"""Videos with what can be seen in each of their frames, by name, for training that needs no questions.

T frames, N patches, C encoder width, W names
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.hub.sources import read_json
from mmllm.synthetic.rendering import ON_SCREEN
from mmllm.train.features import FeatureCache

Spans = Sequence[tuple[float, float]]
"""Intervals in seconds; the end is the time of the first frame after it."""


def read_on_screen(root: Path) -> dict[str, dict[str, Spans]]:
    """Id of each video -> name -> when it is on screen, from the file beside the annotations; empty without the file.

    Raises:
        InputError: if the file is not of that form.
    """
    file = root / ON_SCREEN
    if not file.exists():
        return {}
    content = read_json(file)
    try:
        return {
            video.removeprefix("v_"): {
                str(name): [(float(start_s), float(end_s)) for start_s, end_s in spans] for name, spans in names.items()
            }
            for video, names in content.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f'{file}: must say when each thing is on screen, as {{"v_<id>": {{"elephant": [[2.0, 8.0]]}}}}, in seconds'
        ) from None


class NamedFrames(torch.utils.data.Dataset[Any]):
    """An endless shuffle of videos with the names in each frame. Row n depends only on the seed and on n.

    Args:
        videos: file of each video -> name -> when it is on screen.
        cache: features of a frozen encoder; it must be filled.
        rows: number of rows.
        seed: random seed of the shuffle.

    Raises:
        InputError: if there is no video with names.
    """

    def __init__(
        self, videos: Mapping[Path, Mapping[str, Spans]], cache: FeatureCache, *, rows: int, seed: int
    ) -> None:
        self.videos, self.cache, self.rows, self.seed = list(videos.items()), cache, rows, seed
        self.names = sorted({name for names in videos.values() for name in names})
        if not self.names:
            raise InputError(f"no video of the training set has names in {ON_SCREEN}, so there is nothing to point at")

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """`features` (float, T N C) and `shown` (bool, T W) of one video."""
        epoch, place = divmod(row, len(self.videos))
        video, names = self.videos[int(np.random.default_rng((self.seed, epoch)).permutation(len(self.videos))[place])]
        inputs = self.cache.load(video)
        assert inputs.features is not None
        assert inputs.times_s is not None
        return {"features": inputs.features[0].float(), "shown": shown_at(inputs.times_s[0], names, self.names)}


def shown_at(times_s: Tensor, on_screen: Mapping[str, Spans], names: Sequence[str]) -> Tensor:
    """bool, T W: which of the names are on screen at each time (float, T)."""
    column = {name: number for number, name in enumerate(names)}
    shown = torch.zeros(len(times_s), len(names), dtype=torch.bool)
    for name, spans in on_screen.items():
        for start_s, end_s in spans:
            # a frame's time is that of its first instant, rounded; a thing comes and goes with a frame
            shown[:, column[name]] |= (times_s >= start_s - _ROUNDING_S) & (times_s < end_s - _ROUNDING_S)
    return shown


_ROUNDING_S = 1e-3


def stacked(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collates videos: their frames one after the other."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
