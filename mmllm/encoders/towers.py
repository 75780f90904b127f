"""Two encoders side by side: the features of both for each patch of one grid.

    frame ─┬─ first tower   27x27 patches ── 24x24 ─┐
           └─ second tower  27x27 patches ── 24x24 ─┴─ side by side, C1 + C2 wide

Frames are prepared once, at the size of the tower that sees more, and the other tower gets them resized and normalised
in its own way. That differs from preparing each frame twice, as the published models were trained, by one more resize,
and padding has the colour of one tower only.

B videos, T frames, N patches, C1 C2 widths of the towers, C = C1 + C2, S side in pixels
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import check_pixels, regridded
from mmllm.preprocessing.frames import FrameTransform
from mmllm.registry import register
from mmllm.tokens import VisualTokens

PLACES = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Two encoders; the defaults are those of LongVU and TDC, SigLIP and DINOv2."""

    first: Any = "siglip"
    """An encoder, as a mapping or as text. Settings in text are separated by semicolons: `siglip:width=64;layers=2`."""
    second: Any = "dinov2"
    """Another encoder. Scenes are cut by its features."""
    grid: int | None = 24
    """Side of the common grid; None for the first encoder's own."""
    fit: Literal["crop", "pad", "squash"] = "pad"
    """How a frame is brought to the square; see `FrameTransform`."""

    def __post_init__(self) -> None:
        require(self.grid is None or self.grid > 0, self, "grid", "positive")
        for place in PLACES:
            described = getattr(self, place)
            if isinstance(described, str):
                name, colon, rest = described.partition(":")
                described = name + colon + rest.replace(";", ",")
            config = registry.config_of("encoder", described)
            if isinstance(config, TowersConfig):
                raise ConfigError(f"TowersConfig.{place}: a tower is one encoder, not two")
            object.__setattr__(self, place, registry.describe("encoder", config))

    @property
    def towers(self) -> list[Any]:
        """The configurations of both encoders."""
        return [registry.config_of("encoder", getattr(self, place)) for place in PLACES]

    @property
    def frames(self) -> FrameTransform:
        """How frames are prepared: for the tower that sees more pixels."""
        larger = max((tower.frames for tower in self.towers), key=lambda transform: transform.size)
        crop = larger.crop if larger.fit == self.fit else 1.0
        return dataclasses.replace(larger, fit=self.fit, crop=crop)


@register("encoder", "towers", config=TowersConfig)
class Towers(Encoder):
    """Two encoders side by side on one grid, as in LongVU and TDC."""

    grid: tuple[int, int]

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = (registry.build("encoder", tower) for tower in config.towers)
        for place, tower in zip(PLACES, self.towers, strict=True):
            if tower.grid is None or tower.index is not None:
                name = tower.registered_name
                raise ConfigError(f"TowersConfig.{place}: {name!r} gives no whole grid of patches, which towers need")
            if tower.reads_question:
                raise ConfigError(f"TowersConfig.{place}: {tower.registered_name!r} reads questions, a tower does not")
        self.width = sum(self.tower_widths)
        self.grid = self.first.grid if config.grid is None else (config.grid, config.grid)
        self.score_names = frozenset(self.first.score_names) | frozenset(self.second.score_names)
        self.reach = max(tower.reach for tower in self.towers)

    @property
    def chunk(self) -> int:
        """A number of frames that both towers run in whole chunks of theirs."""
        return math.lcm(*(tower.chunk for tower in self.towers))

    @property
    def towers(self) -> tuple[Encoder, Encoder]:
        """Both encoders."""
        return self.first, self.second

    @property
    def tower_widths(self) -> tuple[int, ...]:
        """C1 and C2."""
        return tuple(tower.width for tower in self.towers)

    @property
    def scene_channels(self) -> slice:
        """The second tower's channels."""
        return slice(self.tower_widths[0], None)

    def forward(
        self,
        pixels: Tensor,
        *,
        frame_mask: Tensor | None = None,
        scores: Collection[str] = (),
        margins: tuple[int, int] = (0, 0),
    ) -> VisualTokens:
        """Features B T N C, the first tower's channels first.

        Args:
            pixels: float, B T 3 S S, prepared as the configuration's `frames` says.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: those of either tower; of a kind that both have, the first tower's.
            margins: how many frames at both ends are only there for a tower that looks at neighbours.

        Raises:
            InputError: for pixels of another size or type, or a score that neither tower has.
        """
        given = self.config.frames
        check_pixels(pixels, encoder="towers", size=given.size)
        wanted = self._apart(scores)
        features, found = [], {}
        for tower, names in zip(self.towers, wanted, strict=True):
            seen = prepared_again(pixels, given, tower.config.frames)
            tokens = self._run(tower, seen, frame_mask, names, margins)
            features.append(self._on_grid(tokens.features, tower))
            for name in names:
                found[name] = self._on_grid(tokens.scores[name].unsqueeze(-1), tower).squeeze(-1)
        mask = tokens.frame_mask.unsqueeze(-1).expand(features[0].shape[:3])
        return VisualTokens(features=torch.cat(features, dim=-1), grid=self.grid, mask=mask, scores=found)

    def _run(
        self,
        tower: Encoder,
        pixels: Tensor,
        frame_mask: Tensor | None,
        scores: Collection[str],
        margins: tuple[int, int],
    ) -> VisualTokens:
        """A tower's tokens of the frames between the margins."""
        if tower.reach and any(margins):
            return tower(pixels, frame_mask=frame_mask, scores=scores, margins=margins)
        inner = slice(margins[0], pixels.shape[1] - margins[1])
        return tower(pixels[:, inner], frame_mask=None if frame_mask is None else frame_mask[:, inner], scores=scores)

    def _apart(self, scores: Collection[str]) -> tuple[list[str], list[str]]:
        """The scores that are asked of each tower."""
        wanted: tuple[list[str], list[str]] = ([], [])
        for name in scores:
            kind = name.partition("@")[0]
            if kind not in self.score_names:
                offers = ", ".join(sorted(self.score_names)) or "no scores at all"
                raise InputError(f"encoder 'towers' cannot give {name!r}; it can give {offers}")
            wanted[0 if kind in self.first.score_names else 1].append(name)
        return wanted

    def _on_grid(self, values: Tensor, tower: Encoder) -> Tensor:
        """Values B T N C of a tower's patches on the common grid."""
        assert tower.grid is not None
        flat = regridded(rearrange(values, "b t n c -> (b t) n c"), tower.grid, self.grid)
        return rearrange(flat, "(b t) n c -> b t n c", b=len(values))


def prepared_again(pixels: Tensor, given: FrameTransform, wanted: FrameTransform) -> Tensor:
    """Pixels B T 3 S S that were prepared by one transform, as another one would normalise and size them."""
    if (given.size, given.mean, given.std) == (wanted.size, wanted.mean, wanted.std):
        return pixels

    def constants(values: tuple[float, float, float]) -> Tensor:
        return pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1)

    colours = pixels.float() * constants(given.std) + constants(given.mean)  # 0 to 1
    if given.size != wanted.size:
        frames = rearrange(colours, "b t c y x -> (b t) c y x")
        frames = nn.functional.interpolate(frames, size=(wanted.size,) * 2, mode="bicubic", antialias=True)
        colours = rearrange(frames.clamp(0, 1), "(b t) c y x -> b t c y x", b=len(pixels))
    return ((colours - constants(wanted.mean)) / constants(wanted.std)).to(pixels.dtype)
