"""What families with M-RoPE and grids of patches share.

V videos or images, T temporal grids of a video, h and w: rows and columns of patches before merging
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from einops import reduce
from torch import Tensor

from mmllm.hosting.family import HostFamily
from mmllm.hosting.media import Medium, Source
from mmllm.hosting.positions import PositionRule, mrope
from mmllm.hosting.scores import Tower
from mmllm.hosting.towers import tower_of

GRIDS: dict[Source, str] = {"image": "image_grid_thw", "video": "video_grid_thw"}
"""Feature method -> the input that has T, h and w of its media (int64, V 3)."""


class MropeFamily(HostFamily):
    """Media come with their grids, and a position has time, height and width."""

    position_axes: ClassVar[int] = 4
    splits_videos: ClassVar[bool] = False
    """Whether text stands between the temporal grids of a video; then none of its positions overlap with text."""

    def described(self, config: Any, inputs: Mapping[str, Any]) -> list[Medium]:
        """A medium for each line of the grids."""
        merge = config.vision_config.spatial_merge_size
        media = []
        for source, name in GRIDS.items():
            for t, h, w in [] if inputs.get(name) is None else inputs[name].tolist():
                grid = (h // merge, w // merge)
                media.append(Medium(modality=source, frames=t, grid=grid, count=t * grid[0] * grid[1]))
        return media

    def towers(self, model: Any) -> dict[Source, Tower]:
        """One tower without a class token, for both feature methods; see `full_blocks`."""
        tower = tower_of(model.base_model.visual, full=self.full_blocks(model.config))
        return {} if tower is None else {"image": tower, "video": tower}

    def full_blocks(self, config: Any) -> list[int] | None:
        """Blocks that attend to whole frames; None for all."""
        return None

    def folded(self, model: Any, source: Source, calls: list[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """float32, V: patches that are merged into a token follow each other; a token has their mean."""
        patches = torch.cat([call.flatten() for call in calls])
        return reduce(patches, "(v p) -> v", "mean", p=model.config.vision_config.spatial_merge_size**2)

    def positions(self, model: Any, inputs: Mapping[str, Any], rule: PositionRule) -> Tensor:
        """int64, 4 B N."""
        return mrope(model, inputs, rule)

    @property
    def positions_differ(self) -> bool:
        """Whether a video is one run of tokens, behind which transformers and training count on differently."""
        return not self.splits_videos

    def text_overlaps(self, config: Any, inputs: Mapping[str, Any]) -> bool:
        """Whether the last frame of a video reaches as far as half its height or width, where text goes on."""
        if not self.positions_differ or inputs.get(GRIDS["video"]) is None:
            return False
        videos = [medium for medium in self.described(config, inputs) if medium.source == "video"]
        return any(
            int((video.frames - 1) * self.time_step(config, inputs, number)) >= max(cast(tuple[int, int], video.grid))
            for number, video in enumerate(videos)
        )

    def time_step(self, config: Any, inputs: Mapping[str, Any], video: int) -> float:
        """By how much the time of a position grows from one temporal grid to the next."""
        return 1.0


class TimedGrids(MropeFamily):
    """Qwen3's prompts: each temporal grid of a video stands behind its time as text."""

    splits_videos: ClassVar[bool] = True
    time_text: ClassVar[str] = "<12.5 seconds>"
    grounding: ClassVar[str] = (
        "{} Determine the starting and ending times. Answer in the form: The event happens in <start> - <end> seconds. "
        "If it never happens, answer: It does not happen."
    )
    answer_form: ClassVar[str] = "The event happens in {start} - {end} seconds"
