"""Small films whose packets get chosen times: the makers of the tests of the clock."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

TICK = Fraction(1, 90_000)
SECOND = 90_000
SOUND_RATE = 48_000


def film(
    kind: str,
    times_s: Sequence[float],
    picture: Callable[[int, int, int], np.ndarray],
    *,
    first: int = 0,
    b_frames: bool = False,
    sound_s: Sequence[tuple[float, float]] = (),
    last_s: float | None = None,
    pts_s: dict[int, float] | None = None,
    key_every: int = 24,
    options: dict[str, str] | None = None,
) -> bytes:
    """A file of numbered H.264 pictures with these times.

    Args:
        kind: FFmpeg's name of the container.
        times_s: when each frame is shown; ascending.
        picture: draws a picture from its number, height and width.
        first: number of the first picture.
        b_frames: whether frames are stored in another order than shown.
        sound_s: begin and end of stretches of silent AAC.
        last_s: for how long the last packet says that its frame is shown.
        pts_s: by frame, other times that its packet gets in place of its own.
        key_every: frames from one key frame to the next.
        options: of the container.
    """
    target = io.BytesIO()
    packets = _pictures(times_s, picture, first, b_frames, key_every)
    with av.open(target, "w", format=kind, options=options or {}) as container:
        stream = container.add_stream("libx264", rate=25, options=_x264(b_frames, key_every))
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.time_base = TICK
        queue = []
        ordered = sorted(times_s)
        for i, packet in enumerate(packets):
            frame = packet.pts
            pts_of_frame = (pts_s or {}).get(frame, times_s[frame])
            packet.stream, packet.time_base = stream, TICK
            packet.pts = round(pts_of_frame * SECOND)
            earlier = ordered[i - 2] if i >= 2 else ordered[0] - (2 - i) * 0.04
            packet.dts = round((earlier if b_frames or pts_s else times_s[frame]) * SECOND)
            following = times_s[frame + 1] - times_s[frame] if frame + 1 < len(times_s) else last_s or 0.04
            packet.duration = round(following * SECOND)
            queue.append((packet.dts * TICK, packet))
        if sound_s:
            queue += _sound(container, sound_s)
        for _, packet in sorted(queue, key=lambda entry: entry[0]):
            container.mux(packet)
    return target.getvalue()


def _x264(b_frames: bool, key_every: int) -> dict[str, str]:
    return {"g": str(key_every), "bf": "2" if b_frames else "0", "preset": "veryfast", "sc_threshold": "0"}


def _pictures(times_s, picture, first, b_frames, key_every) -> list[av.Packet]:
    """The coded pictures; `pts` of each is its number from 0."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 128, 64, "yuv420p", Fraction(1, 25)
    codec.options, codec.thread_count = _x264(b_frames, key_every), 1
    packets = []
    for number in range(len(times_s)):
        frame = av.VideoFrame.from_ndarray(picture(first + number, 64, 128), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += codec.encode(frame)
    return packets + codec.encode(None)


def _sound(container, stretches: Sequence[tuple[float, float]]) -> list[tuple[Fraction, av.Packet]]:
    """Silent AAC packets in the given stretches of time."""
    stream = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
    codec = av.CodecContext.create("aac", "w")
    codec.sample_rate, codec.layout, codec.format = SOUND_RATE, "mono", "fltp"
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate = SOUND_RATE
    coded = []
    while len(coded) < 3:
        frame.pts = None
        coded += codec.encode(frame)
    silence = bytes(coded[-1])
    queue = []
    for begin_s, end_s in stretches:
        for i in range(round((end_s - begin_s) * SOUND_RATE / 1024)):
            packet = av.Packet(silence)
            packet.stream, packet.time_base = stream, Fraction(1, SOUND_RATE)
            packet.pts = packet.dts = round(begin_s * SOUND_RATE) + 1024 * i
            packet.duration = 1024
            queue.append((packet.dts * packet.time_base, packet))
    return queue
