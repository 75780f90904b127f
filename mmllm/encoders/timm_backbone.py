"""Any backbone of timm: its last map or tokens, or the maps of chosen stages, and the scores of its classifier.

    frame ── tower ──┬── maps of the stages, on one grid ──┐
                     └── classifier ── K scores ───────────┴── side by side, C wide

B videos, T frames, F frames run at once, N patches, C width, K classes, S side in pixels, G1 G2 rows and columns
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import torch
from einops import rearrange, repeat
from torch import Tensor

from mmllm.encoders.timm_attention import attention_inputs, attention_score, plain_attentions, scores_of
from mmllm.encoders.timm_config import TimmConfig
from mmllm.encoders.timm_maps import as_map, in_raster, on_grid, stage_count
from mmllm.errors import ConfigError
from mmllm.interfaces import Encoder
from mmllm.modeling.tower import (
    FrameOutput,
    check_pixels,
    encode_frames,
    keep_statistics,
    needs_gradient,
    read_scores,
)
from mmllm.registry import register
from mmllm.tokens import VisualTokens


def build_tower(config: TimmConfig) -> Any:
    """timm's network with new weights, with its classifier if the configuration asks for scores of classes."""
    import timm

    classes = 0 if config.classes == "none" else config.class_count
    size = {"img_size": config.image_size} if config.has_fixed_size else {}
    return timm.create_model(config.model, num_classes=classes, **size)


@register("encoder", "timm", config=TimmConfig)
class TimmEncoder(Encoder):
    """Any backbone of timm with a map or tokens, and its classifier."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        try:
            with torch.device("meta"), torch.no_grad():  # the shapes, without computing anything
                self._measure(build_tower(config).eval())
        except (AssertionError, LookupError, RuntimeError, TypeError) as problem:
            what = f"timm cannot run {config.model!r} on {config.image_size} pixels"
            raise ConfigError(f"{what}: {problem!s:.200}") from None
        self.tower = build_tower(config)
        self.score_names = scores_of(self.tower)

    def _measure(self, tower: Any) -> None:
        """Sets width, grid and number of tokens, from the shapes of one frame without storage.

        Raises:
            ConfigError: if the network gives no map or tokens, or lacks a stage.
        """
        side, output_grid = self.config.image_size, self.config.output_grid
        last, maps = self._outputs(tower, torch.zeros(1, 3, side, side), to_end=True)
        final = as_map(tower, last)
        shown = maps[-1] if maps else final
        channels = sum(part.shape[1] for part in maps) if maps else shown.shape[1]
        self.class_count = self.config.class_count if self.config.classes != "none" else 0
        self.width = channels + self.class_count
        self.map_grid = None if shown.ndim == 3 else (shown.shape[2], shown.shape[3])
        if self.map_grid is None and output_grid is not None:
            raise ConfigError(
                f"TimmConfig.output_grid = {output_grid}: {self.config.model!r} gives tokens without grid"
            )
        self.grid = self.map_grid if output_grid is None else (output_grid, output_grid)
        self.tokens = shown.shape[2] if self.grid is None else self.grid[0] * self.grid[1]
        self.is_convolution = last.ndim == 4 and last.shape[1] == tower.num_features
        if self.config.classes == "patch" and last.ndim != 4:
            raise ConfigError(f"TimmConfig.classes = 'patch': {self.config.model!r} gives no map; take 'frame'")

    def _outputs(self, tower: Any, frames: Tensor, *, to_end: bool) -> tuple[Tensor, list[Tensor]]:
        """The output of `forward_features`, and maps F C G1 G2 of the chosen stages in the order of depth.

        Without `to_end` the network stops behind the last of the stages, and the output is that map.
        """
        stages = list(self.config.stage)
        if not stages:
            return tower.forward_features(frames), []
        count = stage_count(tower)
        if not all(-count <= stage < count for stage in stages):
            raise ConfigError(
                f"TimmConfig.stage = {self.config.stage}: {self.config.model!r} has the stages {-count} to {count - 1}"
            )
        found = tower.forward_intermediates(
            frames, indices=stages, output_fmt="NCHW", stop_early=not to_end, intermediates_only=not to_end
        )
        return found if to_end else (found[-1], found)

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.tokens

    @property
    def scene_channels(self) -> slice:
        """All but the scores of classes."""
        return slice(0, self.width - self.class_count)

    def train(self, mode: bool = True) -> Self:
        """Training mode, for a tower that is trained; a frozen one stays as it is.

        Batch norms always keep their statistics: frames of one video are too similar to estimate them.
        """
        super().train(mode)
        if not needs_gradient(self):
            self.tower.eval()
        keep_statistics(self)
        return self

    def forward(
        self, pixels: Tensor, *, frame_mask: Tensor | None = None, scores: Collection[str] = ()
    ) -> VisualTokens:
        """Features B T N C of the chosen stages, the scores of the classes last.

        Args:
            pixels: float, B T 3 S S, prepared as the configuration's `frames` says.
            frame_mask: bool, B T. Frames where it is False are not run.
            scores: of a plain vision transformer `cls_attention` (if it has a class token), `mean_attention` or `keys`
                of the block that made the features, or `...@I` of block I. They are softmax weights over all tokens;
                those of class and register tokens are removed.

        Raises:
            InputError: for pixels of another size or type, or a score that does not exist.
        """
        check_pixels(pixels, encoder="timm", size=self.config.image_size)
        layers = len(plain_attentions(self.tower))
        deepest = max((stage % layers for stage in self.config.stage), default=layers - 1) if layers else 0
        requested = read_scores(
            scores, encoder=f"timm:{self.config.model}", offers=self.score_names, layers=layers, default=deepest
        )
        return encode_frames(
            lambda frames: self._run(frames, requested),
            pixels,
            grid=self.grid,
            chunk=self.config.chunk,
            frame_mask=frame_mask,
            trainable=needs_gradient(self),
        )

    def _run(self, frames: Tensor, requested: Mapping[str, tuple[str, int]]) -> FrameOutput:
        """The tower once; scores are computed from what went into its attentions."""
        frames = frames.to(next(self.tower.parameters()).dtype)
        if self.is_convolution and frames.device.type == "cpu":
            frames = frames.contiguous(memory_format=torch.channels_last)  # faster there
        attentions = plain_attentions(self.tower)
        with attention_inputs(attentions, {layer for _, layer in requested.values()}) as inputs:
            last, maps = self._outputs(self.tower, frames, to_end=bool(requested) or self.class_count > 0)
        features = self._joined(maps) if maps else self._on_output_grid(as_map(self.tower, last))
        if self.class_count:
            features = torch.cat([features, self._class_scores(last)], dim=-1)
        scores = {}
        for name, (kind, layer) in requested.items():
            score = attention_score(kind, attentions[layer], inputs[layer], prefix=self.tower.num_prefix_tokens)
            flat = score if score.ndim == 3 else score.unsqueeze(-1)  # F N K
            placed = self._on_output_grid(in_raster(flat, self.tower))
            scores[name] = placed if score.ndim == 3 else placed.squeeze(-1)
        return FrameOutput(features=features, scores=scores)

    def _joined(self, maps: list[Tensor]) -> Tensor:
        """F N C of maps: all on the grid of the deepest, side by side, then on the output's grid."""
        assert self.map_grid is not None
        return self._on_output_grid(torch.cat([on_grid(part, self.map_grid) for part in maps], dim=1))

    def _on_output_grid(self, values: Tensor) -> Tensor:
        """F N C of a map F C G1 G2, or of tokens F C N."""
        if values.ndim == 3:
            return values.mT
        assert self.grid is not None
        return rearrange(on_grid(values, self.grid), "f c y x -> f (y x) c")

    def _class_scores(self, last: Tensor) -> Tensor:
        """F N K: scores of the classes for the whole frame, or for each patch alone."""
        if self.config.classes == "frame":
            return repeat(self.tower.forward_head(last), "f k -> f n k", n=self.tokens)
        channels_first = last.shape[1] == self.tower.num_features
        axes, single = ("f c y x", "(f y x) c 1 1") if channels_first else ("f y x c", "(f y x) 1 1 c")
        grid = (last.shape[2], last.shape[3]) if channels_first else (last.shape[1], last.shape[2])
        alone = self.tower.forward_head(rearrange(last, f"{axes} -> {single}"))
        return self._on_output_grid(rearrange(alone, "(f y x) k -> f k y x", y=grid[0], x=grid[1]))
