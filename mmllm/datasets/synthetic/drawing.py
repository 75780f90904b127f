"""Worlds to pixels: a small rasteriser in numpy that draws all frames of a thing at once.

W worlds, F frames of each, E entries (one thing in one frame), S side of the frame, P side of the patch that is drawn
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mmllm.datasets.synthetic.world import COLORS, SHAPES, State, World, camera, state

_PAINT = {
    "red": (222, 52, 46),
    "green": (48, 176, 76),
    "blue": (52, 96, 232),
    "yellow": (246, 206, 44),
    "purple": (164, 66, 206),
    "cyan": (62, 208, 222),
}
_INK, _CHALK = np.array((26, 26, 32), dtype=np.uint8), np.array((248, 248, 246), dtype=np.uint8)
_RIM = 0.5
_GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_MARGIN = 4
_NOISE_BANK = 1 << 18


def draw(world: World, size: int) -> np.ndarray:
    """All frames of a clip, uint8 (frames S S 3), RGB."""
    return draw_frames([world], np.arange(world.frames)[None], size)[0]


def draw_frames(worlds: Sequence[World], frame_index: np.ndarray, size: int) -> np.ndarray:
    """The wanted frames of several worlds, uint8 (W F S S 3), RGB.

    Args:
        frame_index: int (W F), which frames of each world.
        size: side of a frame in pixels.
    """
    w, f = frame_index.shape
    nudges = np.stack([camera(world)[index] for world, index in zip(worlds, frame_index, strict=True)])  # W F 2
    canvas = _backgrounds(worlds, nudges, size).reshape(w * f, size, size, 3)
    for slot in range(max((len(world.things) for world in worlds), default=0)):
        _paint_slot(canvas, worlds, frame_index, nudges, slot, size)
    for i, world in enumerate(worlds):
        for digit in world.digits:
            times_s = frame_index[i] / world.fps
            shown = np.flatnonzero((times_s >= digit.span.start_s) & (times_s < digit.span.end_s))
            _stamp(canvas, i * f + shown, plate(digit.value, size), digit.x + nudges[i, shown, 0],
                   digit.y + nudges[i, shown, 1])  # fmt: skip
    return _with_noise(canvas, worlds, frame_index).reshape(w, f, size, size, 3)


@functools.cache
def plate(value: int, size: int) -> np.ndarray:
    """A light digit on a dark plate, uint8 (height width 3): 14 by 18 pixels on a frame of 64."""
    glyph = np.array([[int(dot) for dot in row] for row in _GLYPHS[value].split()], dtype=bool)
    dot = max(round(size / 32), 1)
    mask = np.pad(glyph.repeat(dot, axis=0).repeat(dot, axis=1), dot)
    return np.where(mask[..., None], _CHALK, _INK)


def _backgrounds(worlds: Sequence[World], nudges: np.ndarray, size: int) -> np.ndarray:
    """Soft blotches of muted colour with a fine grain, moved with the camera: uint8 (W F S S 3)."""
    margin = round(_MARGIN * size / 64)
    side = size + 2 * margin
    spread = _blotches(side)  # side 6
    grounds = np.empty((len(worlds), side, side, 3), dtype=np.uint8)
    for ground, world in zip(grounds, worlds, strict=True):
        generator = np.random.Generator(np.random.PCG64(world.texture_seed + 1))
        level = generator.uniform(70, 150) + generator.uniform(-14, 14, size=3)
        coarse = generator.normal(0, 20, size=(6, 6, 1)) + generator.normal(0, 7, size=(6, 6, 3))
        soft = np.einsum("ya,xb,abc->yxc", spread, spread, coarse, optimize=_GROUND_PATH)
        grain = _bank()[generator.integers(0, _NOISE_BANK - side * side) :][: side * side].reshape(side, side, 1)
        np.clip(level + soft + 4.0 * grain, 0, 255, out=soft)
        ground[...] = soft
    shift = margin - np.rint(nudges * size).astype(np.int64)  # W F 2
    windows = sliding_window_view(grounds, (size, size), axis=(1, 2))
    return np.moveaxis(windows[np.arange(len(worlds))[:, None], shift[..., 1], shift[..., 0]], 2, -1).copy()


_GROUND_PATH = ["einsum_path", (0, 2), (0, 1)]


@functools.cache
def _blotches(side: int) -> np.ndarray:
    """Smooth interpolation from 6 coarse values to `side` pixels, float64 (side 6)."""
    place = np.linspace(0, 5, side)[:, None] - np.arange(6)[None]
    weight = np.where(np.abs(place) < 1.5, np.cos(np.pi * place / 3) ** 2, 0.0)
    return weight / weight.sum(axis=1, keepdims=True)


@functools.cache
def _bank() -> np.ndarray:
    """Unit noise from which all grain and sensor noise is cut, float32."""
    return np.random.Generator(np.random.PCG64(20)).standard_normal(_NOISE_BANK, dtype=np.float32)


def _with_noise(canvas: np.ndarray, worlds: Sequence[World], frame_index: np.ndarray) -> np.ndarray:
    """Fresh grey noise on every frame, cut from one bank at a place that depends on world and frame alone."""
    _, size, _, _ = canvas.shape
    seeds = np.array([world.texture_seed % (1 << 31) for world in worlds], dtype=np.int64)
    places = (seeds[:, None] + 7919 * frame_index).reshape(-1) % (_NOISE_BANK - size * size)
    sigma = np.repeat(np.array([world.noise for world in worlds], dtype=np.float32), frame_index.shape[1])
    noise = sliding_window_view(_bank(), size * size)[places] * sigma[:, None]  # W*F S*S
    noisy = canvas + np.rint(noise).astype(np.int16).reshape(*canvas.shape[:3], 1)
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


def _paint_slot(
    canvas: np.ndarray, worlds: Sequence[World], frame_index: np.ndarray, nudges: np.ndarray, slot: int, size: int
) -> None:
    """Draws each world's thing number `slot`, all worlds and frames that show the same shape at once."""
    f = frame_index.shape[1]
    for shape in SHAPES:
        entries, states, colors = [], [], []
        for i, world in enumerate(worlds):
            if slot < len(world.things) and world.things[slot].shape == shape:
                now = state(world.things[slot], frame_index[i] / world.fps)
                now = now._replace(x=now.x + nudges[i, :, 0], y=now.y + nudges[i, :, 1])
                shown = np.flatnonzero(now.visible)
                entries.append(i * f + shown)
                states.append(State(*(values[shown] for values in now)))
                colors.append(np.full(len(shown), COLORS.index(world.things[slot].color)))
        if sum(map(len, entries)):
            together = State(*(np.concatenate(values) for values in zip(*states, strict=True)))
            _paint(canvas, np.concatenate(entries), together, np.concatenate(colors), shape)


def _paint(canvas: np.ndarray, entry: np.ndarray, now: State, color: np.ndarray, shape: str) -> None:
    """Blends one shape into frames `entry` of the canvas (W*F S S 3); `now` and `color` have one row an entry."""
    size = canvas.shape[1]
    pixel = np.float32(64 / size)  # the width of a drawn pixel in 64ths of the side, in which all lengths are below
    reach = 64 * float(now.radius.max()) * 1.2 + 1.5
    patch = min(int(np.ceil(2 * reach / pixel)) + 1, size)
    left = np.clip(np.floor(now.x * size - patch / 2), 0, size - patch).astype(np.int64)
    top = np.clip(np.floor(now.y * size - patch / 2), 0, size - patch).astype(np.int64)

    ramp = np.arange(patch, dtype=np.float32) + 0.5
    right = ((left[:, None] + ramp) * pixel - 64 * now.x[:, None]).astype(np.float32)[:, None, :]  # E 1 P
    down = ((top[:, None] + ramp) * pixel - 64 * now.y[:, None]).astype(np.float32)[:, :, None]  # E P 1
    cosine, sine = (wave(now.angle).astype(np.float32)[:, None, None] for wave in (np.cos, np.sin))
    u, v = cosine * right + sine * down, cosine * down - sine * right  # E P P
    radius = (64 * now.radius).astype(np.float32)[:, None, None]
    outside = _outside(shape, u, v, radius)

    opacity = now.opacity.astype(np.float32)[:, None, None]
    inside = np.clip(0.5 - outside / pixel, 0, 1)
    rim = np.clip(outside / pixel + 0.5 + 1.4 / pixel, 0, 1)
    bar = np.maximum(np.abs(u) - 0.75, np.abs(v + 0.45 * radius) - 0.3 * radius)
    line = np.maximum(rim, np.clip(0.5 - bar / pixel, 0, 1))
    paint = np.array([_PAINT[name] for name in COLORS], dtype=np.float32)[color]  # E 3
    body = np.where(now.white[:, None], _CHALK.astype(np.float32), paint)
    dark = np.where(now.white[:, None], paint, _RIM * paint)

    windows = sliding_window_view(canvas, (patch, patch), axis=(1, 2), writeable=True)
    under = windows[entry, top, left].astype(np.float32)  # E 3 P P
    ink = body[:, :, None, None] + line[:, None] * (dark - body)[:, :, None, None]
    ink -= under
    ink *= (inside * opacity)[:, None]
    windows[entry, top, left] = np.rint(under + ink).astype(np.uint8)


def _outside(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance outside the outline of a shape about the origin, negative inside."""
    if shape == "circle":
        return np.hypot(u, v) - radius
    u = np.abs(u)
    if shape == "triangle":
        return np.maximum(0.866 * u - 0.5 * v, v) - 0.58 * radius
    v = np.abs(v)
    if shape == "square":
        return np.maximum(u, v) - 0.84 * radius
    wide, narrow = 1.02 * radius, 0.38 * radius
    return np.minimum(np.maximum(u - wide, v - narrow), np.maximum(u - narrow, v - wide))


def _stamp(canvas: np.ndarray, entry: np.ndarray, picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Puts a picture into frames `entry` of the canvas, centred at `x` and `y` in sides."""
    size, (height, width, _) = canvas.shape[1], picture.shape
    left = np.clip(np.rint(x * size - width / 2), 0, size - width).astype(np.int64)
    top = np.clip(np.rint(y * size - height / 2), 0, size - height).astype(np.int64)
    windows = sliding_window_view(canvas, (height, width), axis=(1, 2), writeable=True)
    windows[entry, top, left] = np.moveaxis(picture, -1, 0)
