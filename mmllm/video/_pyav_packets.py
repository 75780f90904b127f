"""The packets of a stream: what they say of themselves, and getting at them by number.

The packets of a small file are kept in memory once they were read, so that nothing is read or sought twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video._damage import UnitCheck
from mmllm.video._frame_index import NONE, Packets
from mmllm.video._pyav_decoder import Decoder
from mmllm.video.limits import Deadline, VideoLimits

if TYPE_CHECKING:
    from av.packet import Packet

_HELD_BYTES = 16 << 20
_SKIPPED = 256
"""Up to so many packets are stepped over rather than sought."""


class PacketTable:
    """Gathers what packets say of themselves, within the limits, and the packets too while they are few."""

    def __init__(self, name: str, codec: Any, limits: VideoLimits) -> None:
        self._name, self._limits, self._deadline = name, limits, Deadline(name, limits.cpu_s)
        self._rows: list[tuple[int, int, int, bool, bool]] = []
        self._check, self._bytes = UnitCheck(codec), 0
        self.held: list[Packet] | None = []
        """The packets themselves; None if they are too large."""
        self.intact = True
        """False once a packet was certainly damaged."""

    def add(self, packet: Packet) -> None:
        """Takes the next packet in stored order."""
        pts, dts = packet.pts, packet.dts
        self.intact = self.intact and self._check.intact(packet)
        self._rows.append((
            NONE if pts is None else pts,
            NONE if dts is None else dts,
            packet.duration or 0,
            packet.is_keyframe,
            packet.is_discard,
        ))  # fmt: skip
        if self.held is not None:
            self._bytes += packet.size
            self.held.append(packet)
            if self._bytes > _HELD_BYTES:
                self.held = None
        if len(self._rows) % 256 == 0:
            self._deadline.check("reading its packets")
            self._limits.check_frames(self._name, len(self._rows))

    def packets(self, time_base: Fraction | None) -> Packets:
        """All packets taken so far."""
        self._limits.check_frames(self._name, len(self._rows))
        table = np.array(self._rows, dtype=np.int64).reshape(-1, 5)
        return Packets(
            pts=table[:, 0],
            dts=table[:, 1],
            duration=table[:, 2],
            key=table[:, 3] != 0,
            hidden=table[:, 4] != 0,
            time_base=time_base or Fraction(1, 1000),
        )


class PacketSource:
    """The packets of a stream by number: those held in memory, or those of the container, sought by time.

    Args:
        decoder: the container, which stands at its end.
        packets: what the packets say.
        held: the packets themselves, if they are in memory.
    """

    def __init__(self, decoder: Decoder, packets: Packets, held: list[Packet] | None) -> None:
        self._decoder, self._packets, self._held = decoder, packets, held
        self.position = len(packets)
        """Number of the packet that comes next."""
        self._left: Iterator[Packet] = iter(())
        self._seekable = True

    def next(self) -> Packet:
        """The packet at `position`.

        Raises:
            EOFError: if the container does not give it again.
        """
        if self._held is not None:
            packet = self._held[self.position]
        else:
            following = next(self._left, None)
            if following is None:
                raise EOFError
            packet = following
        self.position += 1
        return packet

    def go_to(self, number: int) -> None:
        """Makes `number` the position.

        Raises:
            EOFError: if the container does not get there.
        """
        if self._held is not None:
            self.position = number
            return
        near = self.position <= number <= self.position + _SKIPPED
        if not near and not (self._seekable and self._sought(number)):
            self._seekable = False
            self._decoder.open()
            self._left, self.position = self._decoder.packets(), 0
        while self.position < number:
            self.next()

    def _sought(self, number: int) -> bool:
        """Jumps to a packet or somewhat before it; False, and nowhere in particular, where the container cannot."""
        import av

        decoder = self._decoder
        for ticks in (int(self._packets.pts[number]), int(self._packets.dts[number])):
            if ticks == NONE:
                continue
            try:
                decoder.container.seek(ticks, stream=decoder.stream, backward=True)
            except av.error.FFmpegError:
                continue
            left = decoder.packets()
            first = next(left, None)
            if first is None or first.pts is None:
                continue
            landed = np.flatnonzero(self._packets.pts == first.pts)
            if len(landed) == 1 and landed[0] <= number:
                self._left = itertools.chain([first], left)
                self.position = int(landed[0])
                return True
        return False
