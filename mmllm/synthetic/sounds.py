"""The sound of a synthetic clip: beeps and ticking at known times over faint noise; and stretches of it for training.

S samples, N stretches, n instants of a stretch, K kinds of sound
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mmllm.synthetic.clips import SyntheticConfig, fresh_world
from mmllm.synthetic.world import SOUNDS, SceneSound
from mmllm.tokens import SAMPLE_RATE

INSTANTS_PER_S = 10
"""Instants at which a stretch of sound has targets."""
_NOISE = 0.002
_PULSE_S, _PAUSE_S, _RAMP_S = 0.25, 0.1, 0.01
_TICK_S, _TICKING_S = 0.008, 0.2
_BLOCK = 600 * SAMPLE_RATE


class Sounding(Protocol):
    """What is heard of a world."""

    @property
    def duration_s(self) -> float:
        """Duration of the clip in seconds."""

    @property
    def texture_seed(self) -> int:
        """The seed of the noise."""

    @property
    def sounds(self) -> Sequence[SceneSound]:
        """What is heard, and when."""


def soundtrack(world: Sounding) -> np.ndarray:
    """float32, S: the sound of a whole clip, at 16 kHz, from -1 to 1. The same for the same world."""
    length = round(world.duration_s * SAMPLE_RATE)
    generator = np.random.Generator(np.random.PCG64(world.texture_seed + 2))
    samples = np.empty(length, dtype=np.float32)
    for start in range(0, length, _BLOCK):
        part = samples[start : start + _BLOCK]
        part[:] = _NOISE * generator.standard_normal(len(part), dtype=np.float32)
    for sound in world.sounds:
        start, stop = (round(time_s * SAMPLE_RATE) for time_s in sound.span)
        samples[start:stop] += _made(sound, min(stop, length) - start, generator)
    return np.clip(samples, -1, 1, out=samples)


def _made(sound: SceneSound, length: int, generator: np.random.Generator) -> np.ndarray:
    """float32, S: one sound from its start to its end."""
    time_s = np.arange(length) / SAMPLE_RATE
    if sound.name == "ticking":
        phase_s = time_s % _TICKING_S
        burst = generator.standard_normal(length) * np.exp(-phase_s / (_TICK_S / 3)) * (phase_s < _TICK_S)
        return (sound.level * burst).clip(-1, 1).astype(np.float32)
    phase_s = time_s % (_PULSE_S + _PAUSE_S)
    envelope = np.clip(np.minimum(phase_s, _PULSE_S - phase_s) / _RAMP_S, 0, 1)
    return (sound.level * envelope * np.sin(2 * np.pi * sound.pitch_hz * time_s)).astype(np.float32)


def sound_batch(config: SyntheticConfig, seed: int, count: int, *, length_s: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of the sound of `count` new worlds, without any file, and what is heard at each instant.

    The same arguments give the same stretches. No stretch is part of a clip of `config`.

    Args:
        config: which worlds are drawn.
        seed: which stretches; for example a training step's number.
        count: N.
        length_s: seconds of a stretch.

    Returns:
        Samples, float32 (N S), and whether each of `SOUNDS` is heard, bool (N n K), at the middle of each tenth of a
        second.
    """
    random_state = random.Random(f"{config.seed}/sounds/{seed}")
    samples = np.zeros((count, length_s * SAMPLE_RATE), dtype=np.float32)
    targets = np.zeros((count, length_s * INSTANTS_PER_S, len(SOUNDS)), dtype=bool)
    for row in range(count):
        world = fresh_world(config, random_state)
        first = random_state.randint(0, max(0, int(world.duration_s) - length_s)) * SAMPLE_RATE
        part = soundtrack(world)[first : first + samples.shape[1]]
        samples[row, : len(part)] = part
        instants_s = first / SAMPLE_RATE + (np.arange(targets.shape[1]) + 0.5) / INSTANTS_PER_S
        for sound in world.sounds:
            heard = (instants_s >= sound.span.start_s) & (instants_s < sound.span.end_s)
            targets[row, :, SOUNDS.index(sound.name)] |= heard
    return samples, targets
