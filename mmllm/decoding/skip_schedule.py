"""Which layers a token goes through, when later tokens need fewer (SkipDecode).

token  0  1  2  3  4  5  6  7       bottom layers (warm-up) and top layers; the middle is left out.
top    x  x  x  x  x  x  x  x       The sets are nested, so each layer's cache is a beginning of the text
       x  x  x  x  x                without gaps.
       x  x
bottom x  x  x  x  x  x  x  x
"""

from __future__ import annotations

from dataclasses import dataclass

from mmllm.errors import ConfigError


def layers_at(step: int, steps: int, least: int, most: int) -> int:
    """n(t): how many layers the token of a step goes through; it falls evenly from `most` to `least`.

    Args:
        step: t, from 0. Behind the last step the number stays.
        steps: N, at least 2.
        least, most: layers of the last and of the first step.
    """
    return round(most - (most - least) * min(step, steps - 1) / (steps - 1))


def layer_numbers(count: int, layers: int, warmup: int) -> tuple[int, ...]:
    """The numbers of `count` of so many layers: the bottom `warmup`, and the top ones."""
    return (*range(warmup), *range(layers - count + warmup, layers))


@dataclass(frozen=True, kw_only=True)
class SkipSchedule:
    """The layers of each token.

    Raises:
        ConfigError: if the numbers do not fit each other.
    """

    layers: int
    """L, of the model."""
    least: int
    most: int
    warmup: int
    steps: int
    """N: tokens over which the number falls."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= self.layers:
            raise ConfigError(
                f"min_layers = {self.least}, max_layers = {self.most}: must be from 1 to the model's {self.layers}, in "
                "this order"
            )
        if not 1 <= self.warmup <= self.least:
            raise ConfigError(f"warmup = {self.warmup}: must be from 1 to min_layers = {self.least}")
        if self.steps < 2:
            raise ConfigError(f"tokens = {self.steps}: layers are left out over at least 2 new tokens")

    def at(self, step: int) -> tuple[int, ...]:
        """The numbers of the layers that the token of a step goes through."""
        return layer_numbers(layers_at(step, self.steps, self.least, self.most), self.layers, self.warmup)
