"""Which container a file is, decided by its first bytes alone; names and extensions play no part.

FFmpeg would also open playlists and scripts (ffconcat, HLS, DASH) that make it read other files or addresses,
whatever the file is called. Here the container is named to FFmpeg, and only those below are ever named.
"""

from __future__ import annotations

HEAD_BYTES = 4096
"""How much of a file `container_of` wants to see."""

_ISO_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx", b"uuid"}
_STARTS = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV", "flv"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
    (b"DKIF", "ivf"),
    (b"YUV4MPEG2", "yuv4mpegpipe"),
    (b"ID3", "mp3"),
    (b"fLaC", "flac"),
)
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,ogg,asf,mpeg,mpegts,mpegvideo,ivf,yuv4mpegpipe,"
    "h264,hevc,mp3,flac,wav"
)
"""FFmpeg's names of the containers allowed, for its own `format_whitelist`."""


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with `head`, or None if it is none of those allowed.

    Sound-only containers are known too, so that such a file can be refused for what it is.
    """
    if len(head) >= 8 and head[4:8] in _ISO_BOXES:
        return "mov"
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WAVE": "wav"}.get(head[8:12])
    if _is_transport_stream(head):
        return "mpegts"
    return _elementary_stream(head)


def _is_transport_stream(head: bytes) -> bool:
    """Sync bytes at a steady distance: 188 bytes, or 192 and 204 with time codes or check bytes around each packet.

    A recording may begin in the middle of a packet, so the first sync byte may stand anywhere in the first one.
    """
    for size in (188, 192, 204):
        count = min(8, len(head) // size - 1)
        if count >= 3 and any(
            all(head[start + i * size] == 0x47 for i in range(count)) for start in range(min(size, len(head)))
        ):
            return True
    return False


def _elementary_stream(head: bytes) -> str | None:
    """H.264 or HEVC without a container: a start code, then a parameter set or access unit delimiter."""
    for code in (b"\x00\x00\x00\x01", b"\x00\x00\x01"):
        if head.startswith(code) and len(head) > len(code) + 1:
            first, second = head[len(code)], head[len(code) + 1]
            if first & 0x80:
                return None
            if (first & 0x1F) in (7, 9) and first >> 5 in (0, 1, 2, 3) and first & 0x1F == (9 if first == 9 else 7):
                return "h264"
            if (first >> 1) & 0x3F in (32, 33, 35) and second & 0x07 == 1:
                return "hevc"
    return None
