"""The packets of a stream: a table of their headers, and access to them by number.

The packets of a small file stay in memory, so that nothing is read or searched for twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from mmllm.video._damage import UnitCheck
from mmllm.video._packet_headers import NONE, Packets
from mmllm.video._pyav_decoder import Decoder, retimed
from mmllm.video.limits import Deadline, VideoLimits

if TYPE_CHECKING:
    from av.packet import Packet

_HELD_BYTES = 16 << 20
_SKIPPED = 256
"""Up to this distance, packets are read and skipped; beyond it, the container seeks."""


class PacketTable:
    """Collects the headers of packets, within the limits. While the packets are small, it holds them, too."""

    def __init__(self, name: str, codec: Any, limits: VideoLimits) -> None:
        self._name, self._limits, self._deadline = name, limits, Deadline(name, limits.cpu_s)
        self._rows: list[tuple[int, int, int, bool, bool]] = []
        self._check, self._bytes = UnitCheck(codec), 0
        self.held: list[Packet] | None = []
        """The packets; None once they are too large together."""
        self.intact = True
        """False once a packet is certainly damaged."""

    def add(self, packet: Packet) -> None:
        """Adds the next packet in stored order."""
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
        """The headers of all packets added so far."""
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
    """The packets of a stream by number, from memory or from the container, which seeks by time.

    Args:
        decoder: the container; it is at its end.
        packets: the headers of all packets.
        held: the packets, if they are in memory.
        pts: int64, times that replace those of the packets, if the file's clock is broken.
    """

    def __init__(
        self, decoder: Decoder, packets: Packets, held: list[Packet] | None, pts: np.ndarray | None = None
    ) -> None:
        self._decoder, self._packets, self._held, self._pts = decoder, packets, held, pts
        self.position = len(packets)
        """Number of the packet that comes next."""
        self._upcoming: Iterator[Packet] = iter(())
        self._seekable = True

    def next(self) -> Packet:
        """The packet at `position`.

        Raises:
            EOFError: if the container ends before it.
        """
        if self._held is not None:
            packet = self._held[self.position]
        else:
            following = next(self._upcoming, None)
            if following is None:
                raise EOFError
            packet = following
        if self._pts is not None:
            packet = retimed(packet, self.position, self._pts)
        self.position += 1
        return packet

    def go_to(self, number: int) -> None:
        """Moves to packet `number`.

        Raises:
            EOFError: if the container ends before it.
        """
        if self._held is not None:
            self.position = number
            return
        near = self.position <= number <= self.position + _SKIPPED
        if not near and not (self._seekable and self._seek(number)):
            self._seekable = False
            self._decoder.open()
            self._upcoming, self.position = self._decoder.packets(), 0
        while self.position < number:
            self.next()

    def _seek(self, number: int) -> bool:
        """Jumps to a packet or a little before it. False if the container cannot; its position is then undefined."""
        import av

        decoder = self._decoder
        for ticks in (int(self._packets.pts[number]), int(self._packets.dts[number])):
            if ticks == NONE:
                continue
            try:
                decoder.container.seek(ticks, stream=decoder.stream, backward=True)
            except av.error.FFmpegError:
                continue
            upcoming = decoder.packets()
            first = next(upcoming, None)
            if first is None or first.pts is None:
                continue
            matches = np.flatnonzero(self._packets.pts == first.pts)  # numbers of the packets with that time
            if len(matches) == 1 and matches[0] <= number:
                self._upcoming = itertools.chain([first], upcoming)
                self.position = int(matches[0])
                return True
        return False
