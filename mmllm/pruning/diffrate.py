"""DiffRate: inside each block of a vision transformer, drop the least attended tokens, then merge more of them.

    block:  attention (merged tokens count by size) -> sort by class attention -> keep p -> merge down to m -> MLP

The numbers p and m of all blocks are a schedule, the same for every image. Both include the class token. A schedule is
learned once (see `diffrate_learning`) and then costs nothing (ICCV 2023, arXiv 2305.17997).

F frames, N tokens with the class token first, P patches, C width, H heads, L blocks, M sources merged away
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import EncoderStage, Origin
from mmllm.modeling.offloaded import in_memory
from mmllm.pruning.diffrate_learning import LearnedDiffRate
from mmllm.pruning.diffrate_schedule import CompressionSchedule, even_schedule, flops
from mmllm.pruning.token_merging import LiveTokens, attend, compress, in_raster_order
from mmllm.registry import register
from mmllm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class DiffRateConfig:
    """Exactly one of: a schedule (`prune` and `merge`), an even schedule (`keep`), a schedule to learn (`target`)."""

    prune: tuple[int, ...] = ()
    """Tokens in each block after dropping, the class token included; one number for each block that is run."""
    merge: tuple[int, ...] = ()
    """Tokens in each block after merging, likewise."""
    keep: int | None = None
    """Patch tokens that remain of each frame with an even schedule of merges, in place of the two lists."""
    target: float | None = None
    """Cost that a schedule learned in training should have, as a fraction of the tower's multiply-adds; in place of
    the lists."""
    granularity: int = 4
    """Distance between the numbers of tokens that are tried while a schedule is learned."""
    cost_weight: float = 100.0
    """Weight of the squared distance from `target`. The paper has 5 for costs in 10^9 multiply-adds, which is 100 for a
    tower of 4.5 * 10^9."""
    clamp_size: bool = False
    """See `merged_size`."""

    def __post_init__(self) -> None:
        given = [bool(self.prune or self.merge), self.keep is not None, self.target is not None]
        if sum(given) != 1:
            raise ConfigError("DiffRateConfig needs exactly one of: a schedule (prune and merge), keep, target")
        require(self.keep is None or self.keep >= 1, self, "keep", "at least 1 token")
        require(self.target is None or 0 < self.target <= 1, self, "target", "above 0 and at most 1")
        require(self.granularity >= 1, self, "granularity", "at least 1")
        require(self.cost_weight >= 0, self, "cost_weight", "zero or more")
        CompressionSchedule(prune=self.prune, merge=self.merge)


@register("reducer", "diffrate", config=DiffRateConfig)
class DiffRateReducer(EncoderStage):
    """DiffRate: drops and merges tokens inside the encoder's blocks, on a schedule that is given or learned."""

    origin = Origin(
        original="OpenGVLab/DiffRate, arXiv 2305.17997",
        compared_with="outputs of its code",
        equal="a block's step, <= 1e-5; costs of the published schedules",
    )
    other_needs = "blocks of a transformer with a class token"
    learns = "the schedule, unless it is given"

    def __init__(self, config: DiffRateConfig) -> None:
        super().__init__()
        self.config = config
        self.rates: LearnedDiffRate | None = None
        """The weights that learn a schedule, if the configuration has a `target`."""
        self.tower: dict[str, int] = {}
        """Width and patch size of the tower; the cost is computed from them."""

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any]:
        """The number of patches that are left behind the last block: the same ratio of tokens goes in each."""
        return {"keep": max(1, round(tokens * share))}

    def prepare(self, encoder: Any) -> None:
        """Creates the weights that learn a schedule for this encoder, if the configuration has a `target`.

        Called when a model is put together.

        Raises:
            ConfigError: if no schedule costs as little as the target.
        """
        if self.config.target is None or self.rates is not None:
            return
        patches, blocks = encoder.grid[0] * encoder.grid[1], encoder.config.blocks_run
        self.rates = LearnedDiffRate(patches=patches, blocks=blocks, granularity=self.config.granularity)
        self.tower = {"width": encoder.width, "patch": encoder.config.patch_size}
        least = self.rates.least_cost(**self.tower) / self._full_cost(patches + 1, blocks)
        if self.config.target < least:
            raise ConfigError(
                f"DiffRateConfig.target = {self.config.target}: with this tower and granularity, must be from "
                f"{least:.3g} to 1"
            )

    def _full_cost(self, tokens: int, blocks: int) -> float:
        """Multiply-adds of the tower when every block keeps all tokens."""
        return flops([tokens] * blocks, tokens=tokens, **self.tower)

    def schedule(self, tokens: int, blocks: int) -> CompressionSchedule:
        """The schedule for a tower of that many blocks and tokens, the class token included.

        Raises:
            ConfigError: if the schedule is for another number of blocks, merges all patch tokens, or was not learned.
        """
        if self.config.keep is not None:
            return even_schedule(tokens, blocks, self.config.keep + 1)
        if self.config.target is not None and self.rates is None:
            raise ConfigError("diffrate:target=... learns its schedule in training, and this model has not learned one")
        if self.rates is None:
            schedule = CompressionSchedule(prune=self.config.prune, merge=self.config.merge)
        else:
            with in_memory(self.rates):
                schedule = self.rates.schedule()
        if len(schedule) != blocks:
            raise ConfigError(f"the schedule is for {len(schedule)} blocks, the encoder runs {blocks}")
        schedule.live(tokens)
        return schedule

    def start(self, hidden: Tensor, blocks: int) -> Any:
        """The state before the first of `blocks` blocks: all tokens of the hidden states F N C are live."""
        if self.rates is not None and self.training:
            return self.rates.start(hidden, blocks)
        return self.schedule(hidden.shape[1], blocks), LiveTokens.at_first(hidden)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """See `attend`."""
        if self.rates is not None and self.training:
            return self.rates.attend(queries, keys, values, state)
        return attend(queries, keys, values, state[1].size)

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Drops and merges tokens in block number `block`; see `compress`."""
        if self.rates is not None and self.training:
            return self.rates.reduce(block, hidden, row, state)
        schedule, live = state
        prune, merge = schedule.prune[block], schedule.merge[block]
        hidden, live = compress(hidden, live, row, prune=prune, merge=merge, clamp_size=self.config.clamp_size)
        return hidden, (schedule, live)

    def finish(self, hidden: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Features, index and size of the patch tokens; see `in_raster_order`."""
        if self.rates is not None and self.training:
            return self.rates.finish(hidden, state)
        return in_raster_order(hidden, state[1])

    def losses(self) -> dict[str, Tensor]:
        """`diffrate_cost`: squared distance of the cost from its target, weighted; empty if no schedule is learned."""
        if self.rates is None or self.config.target is None:
            return {}
        full_cost = self._full_cost(self.rates.patches + 1, len(self.rates.prune_rates))
        fraction = self.rates.cost(**self.tower) / full_cost
        return {"diffrate_cost": self.config.cost_weight * (fraction - self.config.target) ** 2}

    @property
    def by_frame(self) -> bool:
        """True."""
        return True

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens as they are: they were reduced inside the encoder.

        Raises:
            InputError: if they were not.
        """
        if tokens.size is None:
            raise InputError("diffrate works inside the encoder; these tokens come from an encoder that ran without it")
        return tokens

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video if every block is run; all while no schedule is learned."""
        if self.config.target is not None and self.rates is None:
            return tokens_per_frame * frames
        blocks = len(self.rates.prune_rates) if self.rates else len(self.config.prune) or 2
        return (self.schedule(tokens_per_frame + 1, blocks).live(tokens_per_frame + 1)[-1] - 1) * frames
