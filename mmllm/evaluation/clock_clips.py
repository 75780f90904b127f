"""Clips whose times are known exactly: a number in each frame, a counter to be read, and a coloured shape as event.

The counter is no clock of the video: it begins at any number, so nobody finds a time by copying what it shows.

n frames, S side of a picture in pixels
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from mmllm.evaluation.clock_strip import draw_strip
from mmllm.runtime.files import replacing
from mmllm.synthetic.drawing import draw_stage, plate
from mmllm.synthetic.staging import stage
from mmllm.synthetic.world import COLORS, SHAPES, SceneSpan, Thing, World
from mmllm.times.answers import Span
from mmllm.tokens import SAMPLE_RATE

SIZE = 224
"""Side of a picture in pixels: a multiple of all usual patches."""
DURATION_S = 24.0
LATE_S = 3.2
"""When the picture of a late clip begins; its sound begins at 0."""
_TICKS = 20
"""Ticks of a second; all frames lie on them."""
_PLACES = ((0.25, 0.36), (0.72, 0.40), (0.32, 0.72))
"""Where the shape may be, apart from the strip at the top and the counter at the bottom right."""
_PIECE = 32
_MILLISECOND = Fraction(1, 1000)
_SOUND_FRAME = 1024
"""Samples of a frame of AAC."""


@dataclass(frozen=True, kw_only=True)
class ClockEvent:
    """A coloured shape, and when it is on screen."""

    name: str
    """Such as "red circle"."""
    span: Span
    """On a player's clock. Its end is the time of the first frame without it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClockClip:
    """A clip on disk, with everything that is true of it."""

    path: Path
    times_s: np.ndarray
    """float64, n. When each frame is shown, on a player's clock, which starts with the first picture or sound."""
    duration_s: float
    events: tuple[ClockEvent, ...]
    counter: int
    """What the counter shows from 0 to 1 s; it goes up by one each second of the player's clock."""
    sound: bool
    """Whether there is silence from 0 on, beside the picture."""
    world: World
    """What is drawn."""

    @property
    def average_fps(self) -> float:
        """Frames a second as a file's header has it: their number over the time of the picture."""
        return len(self.times_s) / (self.duration_s - float(self.times_s[0]))


def steady_times() -> np.ndarray:
    """float64, n: ten frames a second."""
    return np.arange(0, DURATION_S, 0.1).round(3)


def late_times() -> np.ndarray:
    """float64, n: ten frames a second, from `LATE_S` on."""
    return np.arange(LATE_S, DURATION_S, 0.1).round(3)


def uneven_times() -> np.ndarray:
    """float64, n: 10, then 2.5, then 5 frames a second, as a screen recording or a phone may have them."""
    parts = (np.arange(0, 8, 0.1), np.arange(8, 16, 0.4), np.arange(16, DURATION_S, 0.2))
    return np.concatenate(parts).round(3)


TIMELINES: dict[str, Callable[[], np.ndarray]] = {"steady": steady_times, "late": late_times, "uneven": uneven_times}
"""Kind of clip -> the times of its frames."""


def clock_clip(folder: Path, kind: str, seed: int) -> ClockClip:
    """A clip of some kind, the same for the same seed. Its file is written by `render`.

    Args:
        folder: where its file is to be.
        kind: a name of `TIMELINES`.
        seed: which shape is seen, and when.
    """
    times_s = TIMELINES[kind]()
    random_state = random.Random(f"clock {kind} {seed}")
    world = _world(times_s, random_state)
    return ClockClip(
        path=folder / f"{kind}_{seed}.mp4",
        times_s=times_s,
        duration_s=DURATION_S,
        events=tuple(ClockEvent(name=thing.name, span=Span(*thing.presence)) for thing in world.things),
        counter=random_state.randint(120, 900),
        sound=kind == "late",
        world=world,
    )


def render(clip: ClockClip) -> None:
    """Writes a clip's file, an mp4, if there is none.

    Raises:
        InputError: if the file cannot be written.
    """
    if not clip.path.exists():
        with replacing(clip.path) as part:
            _write(part, _pictures(clip), clip.times_s, sound=clip.sound)


def frames_of(clip: ClockClip) -> np.ndarray:
    """All frames as they are in the file, uint8 (n S S 3)."""
    import av

    with av.open(str(clip.path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _world(times_s: np.ndarray, random_state: random.Random) -> World:
    """A shape that is on screen once, for 2.5 to 5 s, at times of frames."""
    begin = random_state.uniform(times_s[0] + 0.7, DURATION_S - 8)
    start, end = (_off_whole_seconds(times_s, at) for at in (begin, begin + random_state.uniform(2.5, 5)))
    color, shape, (x, y) = (random_state.choice(values) for values in (COLORS[:4], SHAPES[:3], _PLACES))
    presence = SceneSpan(start, end)
    thing = Thing(color=color, shape=shape, x=x, y=y, radius=0.14, angle=0.0, presence=presence, events=())
    return World(
        frames=round(DURATION_S * _TICKS),
        fps=_TICKS,
        things=(thing,),
        digits=(),
        jitter=0.0,
        noise=0.5,
        texture_seed=random_state.getrandbits(48),
    )


def _off_whole_seconds(times_s: np.ndarray, at_s: float) -> float:
    """The time of a frame near `at_s` that is at least a fifth of a second away from whole seconds."""
    apart = np.abs(times_s - times_s.round()) > 0.19
    usable = times_s[apart]
    return float(usable[np.abs(usable - at_s).argmin()])


def _pictures(clip: ClockClip) -> Iterator[np.ndarray]:
    """The frames, each uint8 (S S 3)."""
    ticks = (clip.times_s * clip.world.fps).round().astype(np.int64)
    for first in range(0, len(ticks), _PIECE):
        pictures = draw_stage(stage([clip.world], ticks[None, first : first + _PIECE]), SIZE)[0]
        for number, picture in enumerate(pictures, start=first):
            draw_strip(picture, number)
            _draw_counter(picture, clip.counter + int(clip.times_s[number] + 1e-9))
            yield picture


def _draw_counter(picture: np.ndarray, value: int) -> None:
    """Puts three digits into the bottom right corner."""
    digits = np.concatenate([plate(int(digit), SIZE // 2) for digit in f"{value:03d}"], axis=1)
    height, width = digits.shape[:2]
    picture[SIZE - height - 8 : SIZE - 8, SIZE - width - 8 : SIZE - 8] = digits


def _write(path: Path, pictures: Iterator[np.ndarray], times_s: np.ndarray, *, sound: bool) -> None:
    """Writes an H.264 mp4 whose frames have these times, with silence from 0 on if it has sound."""
    import av

    options = {"preset": "veryfast", "crf": "20", "threads": "1", "bf": "0", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1000, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _MILLISECOND
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
        begins = (1000 * times_s).round().astype(int)
        lengths = dict(zip(begins.tolist(), np.diff(np.append(begins, round(1000 * DURATION_S))).tolist(), strict=True))
        for picture, begin in zip(chain(pictures, (None,)), [*begins.tolist(), None], strict=True):
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
            if frame is not None:
                frame.pts, frame.time_base = begin, _MILLISECOND
            for packet in stream.encode(frame):  # None at the end: what the encoder still holds back
                packet.duration = lengths[packet.pts]
                container.mux(packet)
        for first in range(0, round(DURATION_S * SAMPLE_RATE) if track else 0, _SOUND_FRAME):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, _SOUND_FRAME), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            container.mux(track.encode(silence))
        if track:
            container.mux(track.encode())
