"""Drawing worlds: a small rasteriser in numpy that draws all frames of a thing at once.

W worlds, F frames of each, E entries (a thing in a frame), S side of a frame, P side of the patch that is drawn
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mmllm.synthetic.staging import Stage, stage
from mmllm.synthetic.world import COLORS, SHAPES, State, World

_PAINT = {
    "red": (222, 52, 46),
    "green": (48, 176, 76),
    "blue": (52, 96, 232),
    "yellow": (246, 206, 44),
    "purple": (164, 66, 206),
    "cyan": (62, 208, 222),
}
_INK, _CHALK = np.array((26, 26, 32), dtype=np.uint8), np.array((248, 248, 246), dtype=np.uint8)
_RIM = 0.5  # brightness of a thing's rim and hand, as a fraction of its colour
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
_MARGIN = 4  # how far the camera can move the background, in pixels of a frame of 64
_PIECE_PIXELS = 1 << 20


def draw(world: World, size: int) -> np.ndarray:
    """All frames of a clip, uint8 (frames S S 3), RGB."""
    return np.concatenate(list(draw_pieces(world, size)))


def draw_pieces(world: World, size: int) -> Iterator[np.ndarray]:
    """All frames of a clip in order, in pieces that need little memory: each is uint8 (F S S 3), RGB."""
    piece = max(_PIECE_PIXELS // (size * size), 1)
    for start in range(0, world.frames, piece):
        frame_index = np.arange(start, min(start + piece, world.frames))
        yield draw_stage(stage([world], frame_index[None]), size)[0]


def draw_stage(scene: Stage, size: int, *, as_encoded: bool = False) -> np.ndarray:
    """The frames of a stage, uint8 (W F S S 3), RGB. A frame does not depend on the other frames of the stage.

    Args:
        scene: worlds and frames.
        size: side of a frame in pixels.
        as_encoded: whether frames look approximately as after encoding and decoding: 2 x 2 pixels of a thing share one
            colour, and a part of the noise does not change over time.
    """
    w, f = scene.frame_index.shape
    canvas = _backgrounds(scene, size).reshape(w * f, size, size, 3)
    for layer in range(max((len(world.things) for world in scene.worlds), default=0)):
        for shape, name in enumerate(SHAPES):
            thing = np.flatnonzero((scene.layer == layer) & (scene.shape == shape))
            _paint(canvas, scene, thing, name, as_encoded)
    for i, (world, times_s) in enumerate(zip(scene.worlds, scene.times_s, strict=True)):
        for digit in world.digits:
            frames = np.flatnonzero((times_s >= digit.span.start_s) & (times_s < digit.span.end_s))
            x, y = digit.x + scene.nudges[i, frames, 0], digit.y + scene.nudges[i, frames, 1]
            _stamp(canvas, i * f + frames, plate(digit.value, size), x, y)
    noisy = np.rint(_noise(scene, size, as_encoded)).astype(np.int16).repeat(3, axis=-1).reshape(canvas.shape)
    noisy += canvas
    np.clip(noisy, 0, 255, out=noisy)
    return noisy.astype(np.uint8).reshape(w, f, size, size, 3)


@functools.cache
def plate(value: int, size: int) -> np.ndarray:
    """A light digit on a dark plate, uint8 (height width 3): 18 high and 14 wide in pixels for a frame of 64."""
    glyph = np.array([[int(dot) for dot in row] for row in _GLYPHS[value].split()], dtype=bool)
    dot = max(round(size / 32), 1)
    mask = np.pad(glyph.repeat(dot, axis=0).repeat(dot, axis=1), dot)
    return np.where(mask[..., None], _CHALK, _INK)


def _backgrounds(scene: Stage, size: int) -> np.ndarray:
    """Backgrounds, uint8 (W F S S 3): soft blotches of muted colour with a fine grain, moved with the camera.

    Each scene of a world has its own.
    """
    margin = round(_MARGIN * size / 64)
    side = size + 2 * margin
    seeds, row = _background_seeds(scene)
    w, spread = len(seeds), _blotches(side)
    grains = sliding_window_view(_noise_bank(side), side * side)
    coarse, grain = np.empty((w, 6, 6, 3), dtype=np.float32), np.empty((w, side, side), dtype=np.float32)
    for i, seed in enumerate(seeds):
        generator = np.random.Generator(np.random.PCG64(seed))
        level = generator.uniform(70, 150) + generator.uniform(-14, 14, size=3)
        coarse[i] = level + generator.normal(0, 20, size=(6, 6, 1)) + generator.normal(0, 7, size=(6, 6, 3))
        grain[i] = grains[generator.integers(len(grains))].reshape(side, side)
    rows = (spread @ coarse.reshape(w, 6, 18)).reshape(w, side, 6, 3)
    blotches = spread @ rows  # W side side 3
    blotches += 4 * grain.repeat(3, axis=-1).reshape(blotches.shape)
    backgrounds = np.clip(blotches, 0, 255, out=blotches).astype(np.uint8)
    # Each background is larger than a frame by the margin; the camera selects the part that is visible.
    shift = margin - np.rint(scene.nudges * size).astype(np.int64)  # W F 2
    windows = sliding_window_view(backgrounds, (size, size), axis=(1, 2))
    return np.moveaxis(windows[row, shift[..., 1], shift[..., 0]], 2, -1).copy()


def _background_seeds(scene: Stage) -> tuple[list[int | list[int]], np.ndarray]:
    """The seed of each background, and which of them each frame has (int64, W F). Only scenes that are shown count."""
    seeds: list[int | list[int]] = []
    row = np.empty_like(scene.frame_index)
    for i, world in enumerate(scene.worlds):
        part = np.searchsorted(np.array(world.cuts, dtype=np.int64), scene.frame_index[i], side="right")
        parts, row[i] = np.unique(part, return_inverse=True)
        row[i] += len(seeds)
        seed = world.texture_seed + 1
        seeds += [[seed, number] if number else seed for number in parts.tolist()]
    return seeds, row


@functools.cache
def _blotches(side: int) -> np.ndarray:
    """Weights that interpolate smoothly from 6 coarse values to `side` pixels, float32 (side 6)."""
    distance = np.linspace(0, 5, side)[:, None] - np.arange(6)[None]
    weight = np.where(np.abs(distance) < 1.5, np.cos(np.pi * distance / 3) ** 2, 0.0)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def _noise_bank(side: int) -> np.ndarray:
    """Noise of standard deviation 1, float32, from which grain and sensor noise of frames up to `side` are cut."""
    length = max(1 << 18, 4 * side * side)
    return np.random.Generator(np.random.PCG64(20)).standard_normal(length, dtype=np.float32)


def _noise(scene: Stage, size: int, as_encoded: bool) -> np.ndarray:
    """Grey noise, float32 (W*F S S), which depends only on world and frame.

    For `as_encoded`, this was measured on clips of 64 pixels at quality 26: after H.264, a picture with noise of
    standard deviation sigma differs from the clean picture by about 0.95 + 0.64 sigma. A fraction 0.9 exp(-0.62 sigma)
    of it is still the same five frames later.
    """
    windows = sliding_window_view(_noise_bank(size), size * size)
    sigma = np.array([world.noise for world in scene.worlds], dtype=np.float32)[:, None, None]
    seeds = np.array([world.texture_seed % (1 << 31) for world in scene.worlds], dtype=np.int64)[:, None]
    noise = windows[(seeds + 7919 * scene.frame_index) % len(windows)]  # W F S*S
    if as_encoded:
        static_fraction = 0.9 * np.exp(-0.62 * sigma)
        noise *= np.sqrt(1 - static_fraction)
        noise += np.sqrt(static_fraction) * windows[(seeds + 1) % len(windows)]
    noise *= 0.95 + 0.64 * sigma if as_encoded else sigma
    return noise.reshape(-1, size, size)


def _paint(canvas: np.ndarray, scene: Stage, thing: np.ndarray, shape: str, as_encoded: bool) -> None:
    """Blends things of one shape, at most one of each world, into all frames (W*F S S 3) in which they are visible."""
    # 1. The entries: each visible thing in each frame, with its state.
    position, frame = np.nonzero(scene.now.visible[thing])
    if len(position) == 0:
        return
    row = thing[position]
    entry = scene.world_index[row] * scene.frame_index.shape[1] + frame
    now, color = State(*(values[row, frame] for values in scene.now)), scene.color[row]

    # 2. The patch of pixels that is drawn for each entry. All lengths are in 64ths of the frame's side.
    size = canvas.shape[1]
    pixel = np.float32(64 / size)  # width of a pixel
    reach = 64 * float(now.radius.max()) * 1.2 + 1.5
    patch = min(2 * int(np.ceil(reach / pixel)) + 2, size)  # even, at even positions: see `_with_shared_color`
    left = np.clip(2 * np.rint(now.x * size / 2 - patch / 4), 0, size - patch).astype(np.int64)
    top = np.clip(2 * np.rint(now.y * size / 2 - patch / 4), 0, size - patch).astype(np.int64)

    # 3. The distance of each pixel from the outline, in the thing's own axes u and v.
    ramp = np.arange(patch, dtype=np.float32) + 0.5
    right = ((left[:, None] + ramp) * pixel - 64 * now.x[:, None]).astype(np.float32)[:, None, :]  # E 1 P
    down = ((top[:, None] + ramp) * pixel - 64 * now.y[:, None]).astype(np.float32)[:, :, None]  # E P 1
    cosine, sine = (wave(now.angle).astype(np.float32)[:, None, None] for wave in (np.cos, np.sin))
    u, v = cosine * right + sine * down, cosine * down - sine * right  # E P P
    radius = (64 * now.radius).astype(np.float32)[:, None, None]
    outside = _outside(shape, u, v, radius)

    # 4. Which part of each pixel is inside, and which is a line: the rim, or the hand that shows the angle.
    opacity = now.opacity.astype(np.float32)[:, None, None]
    inside = np.clip(0.5 - outside / pixel, 0, 1)
    rim = np.clip(outside / pixel + 0.5 + 1.4 / pixel, 0, 1)
    hand = np.maximum(np.abs(u) - 0.17 * radius, np.abs(v + 0.4 * radius) - 0.5 * radius)
    line = np.maximum(rim, np.clip(0.5 - hand / pixel, 0, 1))
    paint = np.array([_PAINT[name] for name in COLORS], dtype=np.float32)[color]  # E 3
    body = np.where(now.white[:, None], _CHALK.astype(np.float32), paint)
    dark = np.where(now.white[:, None], paint, _RIM * paint)

    # 5. Blend with the pixels of the canvas.
    windows = sliding_window_view(canvas, (patch, patch), axis=(1, 2), writeable=True)
    pixels = windows[entry, top, left].astype(np.float32)  # E 3 P P
    change = body[:, :, None, None] + line[:, None] * (dark - body)[:, :, None, None]
    change -= pixels
    change *= (inside * opacity)[:, None]
    pixels += _with_shared_color(change) if as_encoded else change
    windows[entry, top, left] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _with_shared_color(patches: np.ndarray) -> np.ndarray:
    """Changes of pixels (E 3 P P) with the mean colour of each 2 x 2 pixels; the grey of each pixel stays the same."""
    grey = np.einsum("ecyx,c->eyx", patches, np.array([0.299, 0.587, 0.114], dtype=np.float32))[:, None]
    color = patches - grey
    color = color[:, :, ::2] + color[:, :, 1::2]
    color = (color[..., ::2] + color[..., 1::2]) / 4
    return grey + color.repeat(2, axis=2).repeat(2, axis=3)


def _outside(shape: str, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance of points (u, v) from the outline of a shape around the origin; negative inside."""
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
    """Puts a picture into frames `entry` of the canvas; its centre is at `x` and `y`, in fractions of the side."""
    size, (height, width, _) = canvas.shape[1], picture.shape
    left = np.clip(np.rint(x * size - width / 2), 0, size - width).astype(np.int64)
    top = np.clip(np.rint(y * size - height / 2), 0, size - height).astype(np.int64)
    windows = sliding_window_view(canvas, (height, width), axis=(1, 2), writeable=True)
    windows[entry, top, left] = np.moveaxis(picture, -1, 0)
