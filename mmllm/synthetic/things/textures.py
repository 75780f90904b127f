"""Made grounds: soft clouds, stripes, tiles and others, each in its own muted colours.

S side
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
"""From a generator and the coordinates x and y (S S, 0 to 1), how much of the second colour each pixel has (S S)."""


def texture(name: str, seed: int, side: int) -> np.ndarray:
    """A ground of a kind of `SEEN` or `UNSEEN`, uint8 (S S 3), RGB. The same for the same seed, in any size."""
    generator = np.random.Generator(np.random.PCG64([seed, 7]))
    y, x = np.meshgrid(*2 * [(np.arange(side) + 0.5) / side], indexing="ij")
    low, high = _colors(generator)
    share = np.clip((SEEN | UNSEEN)[name](generator, x, y), 0, 1)[..., None]
    shade = 1 + 0.25 * (_waves(generator, x, y, 1.5) - 0.5)[..., None]
    grain = 3 * np.random.Generator(np.random.PCG64([seed, 8])).standard_normal((side, side, 1))
    return np.clip((low + (high - low) * share) * shade + grain, 0, 255).astype(np.uint8)


def _colors(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two muted colours that differ a little (3 each)."""
    middle = generator.uniform(70, 190) + generator.uniform(-35, 35, size=3)
    away = generator.uniform(12, 35) + generator.uniform(-12, 12, size=3)
    return middle - away, middle + away


def _waves(generator: np.random.Generator, x: np.ndarray, y: np.ndarray, pitch: float) -> np.ndarray:
    """A few soft waves of random directions, 0 to 1."""
    total = np.zeros_like(x)
    for _ in range(5):
        angle, phase = generator.uniform(0, 2 * np.pi, size=2)
        rate = 2 * np.pi * pitch * generator.uniform(0.5, 1.5)
        total += np.sin(rate * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return 0.5 + total / 7


def _edge(distance: np.ndarray, side: int) -> np.ndarray:
    """1 where the distance (in sides) is below 0, 0 above, with a smooth edge."""
    return np.clip(0.5 - distance * side, 0, 1)


def _clouds(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (_waves(generator, x, y, 1.5) + 0.5 * _waves(generator, x, y, 4) + 0.25 * _waves(generator, x, y, 9)) / 1.75


def _gradient(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    horizon, tilt = generator.uniform(0.35, 0.7), generator.uniform(-0.15, 0.15)
    y = np.clip(y + tilt * (x - 0.5), 0, 1)
    return np.where(y < horizon, y / horizon * 0.6, 0.75 + 0.25 * (y - horizon) / (1 - horizon))


def _stripes(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle, rate = generator.uniform(0, np.pi), generator.uniform(4, 9)
    return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * np.pi * rate * (np.cos(angle) * x + np.sin(angle) * y)))


def _tiles(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    count = int(generator.integers(4, 8))
    shades = generator.uniform(0.3, 1.0, size=(count, count))
    column, row = (np.minimum((values * count).astype(int), count - 1) for values in (x, y))
    gap = 0.5 - np.maximum(np.abs(x * count % 1 - 0.5), np.abs(y * count % 1 - 0.5))
    return shades[row, column] * np.clip(gap / 0.05, 0, 1)


def _discs(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    share = np.full_like(x, 0.2)
    for _ in range(18):
        (left, top), radius = generator.uniform(0, 1, size=2), generator.uniform(0.03, 0.13)
        share += generator.uniform(0.15, 0.4) * _edge(np.hypot(x - left, y - top) - radius, 40)
    return share


def _bricks(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows = int(generator.integers(8, 13))
    row = np.floor(y * rows)
    along = x * rows / 2 + 0.5 * (row % 2)
    gap = np.minimum(0.5 - np.abs(y * rows % 1 - 0.5), 2 * (0.5 - np.abs(along % 1 - 0.5)))
    return np.clip(gap / 0.12, 0, 1) * (0.7 + 0.3 * np.sin(12.9 * np.floor(along) + 78.2 * row))


def _rings(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (left, top), rate = generator.uniform(0.2, 0.8, size=2), generator.uniform(5, 11)
    return 0.5 + 0.5 * np.sin(2 * np.pi * rate * np.hypot(x - left, y - top))


SEEN: dict[str, Texture] = {
    "clouds": _clouds,
    "gradient": _gradient,
    "stripes": _stripes,
    "tiles": _tiles,
    "discs": _discs,
}
UNSEEN: dict[str, Texture] = {"bricks": _bricks, "rings": _rings}
"""Kinds that only evaluation shows."""
