"""How many streams the tables of an MPEG transport stream announce, and how many of them are video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PACKET_SIZES = (188, 192, 204)
_VIDEO_TYPES = {0x01, 0x02, 0x10, 0x1B, 0x20, 0x21, 0x24, 0x33, 0x42, 0xD1, 0xEA}


def streams_of(data: bytes) -> tuple[int, int]:
    """Streams that the program tables in the first bytes list, all programs together; and the video streams of them."""
    size, start = _layout(data)
    if not size:
        return 0, 0
    headers = np.frombuffer(data, dtype=np.uint8)[start : start + (len(data) - start) // size * size]
    pids = headers[1::size].astype(np.int64) % 32 * 256 + headers[2::size]
    programs: set[int] = set()
    for section in _sections(data, start, size, pids, 0):
        programs |= {int.from_bytes(section[i + 2 : i + 4], "big") & 0x1FFF for i in range(8, len(section) - 4, 4)}
    streams: dict[int, int] = {}
    for program in programs:
        for section in _sections(data, start, size, pids, program):
            streams |= _listed(section)
    return len(streams), sum(kind in _VIDEO_TYPES for kind in streams.values())


def _sections(data: bytes, start: int, size: int, pids: np.ndarray, pid: int) -> Iterator[bytes]:
    """The whole tables in the packets of one number (PID)."""
    section, length = b"", 0
    earlier: set[bytes] = set()  # tables are repeated all the time
    for place in np.flatnonzero(pids == pid).tolist():
        packet = data[start + place * size : start + place * size + 188]
        if packet[4:] in earlier:
            continue
        earlier.add(packet[4:])
        payload = _payload(packet)
        section = payload[1 + payload[0] :] if packet[1] & 0x40 and payload else section + payload
        length = 3 + (int.from_bytes(section[1:3], "big") & 0xFFF) if len(section) >= 3 else 0
        if 12 <= length <= len(section):
            yield section[:length]


def _layout(data: bytes) -> tuple[int, int]:
    """Bytes of a packet and where the first starts; zeros if that is unclear."""
    for size in _PACKET_SIZES:
        count = min(8, len(data) // size - 1)
        for start in range(min(size, len(data))):
            if count >= 3 and all(data[start + i * size] == 0x47 for i in range(count)):
                return size, start
    return 0, 0


def _payload(packet: bytes) -> bytes:
    control = packet[3] >> 4 & 3
    if not control & 1:
        return b""
    return packet[5 + packet[4] :] if control & 2 else packet[4:]


def _listed(section: bytes) -> dict[int, int]:
    """Packet number -> type of each stream in a program map."""
    position = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)
    kinds = {}
    while position + 5 <= len(section) - 4:
        kinds[int.from_bytes(section[position + 1 : position + 3], "big") & 0x1FFF] = section[position]
        position += 5 + (int.from_bytes(section[position + 3 : position + 5], "big") & 0xFFF)
    return kinds
