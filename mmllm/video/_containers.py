"""The container of a file, recognised by its first bytes alone. The file's name and extension do not matter.

FFmpeg would also open playlists and scripts (ffconcat, HLS, DASH) that make it read other files or addresses,
whatever the file's name is. Therefore we give FFmpeg the container's name, and only names of this file.
"""

from __future__ import annotations

HEAD_BYTES = 4096
"""How many bytes of a file `container_of` needs."""

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
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "mxf"),
    (b"nut/multimedia container\0", "nut"),
    (b"\x1f\x07\x00\x3f", "dv"),
    (b"\x1f\x07\x00\xbf", "dv"),
)
SOUND = ("mp3", "flac", "wav")
"""Containers of sound alone. They are opened only to list their streams."""
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,gif,ogg,asf,mpeg,mpegts,mpegvideo,ivf,yuv4mpegpipe,"
    "h264,hevc,mp3,flac,wav,mxf,nut,dv"
)
"""FFmpeg's names of the allowed containers, for its option `format_whitelist`."""


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that begins with `head`, or None if it is not an allowed one.

    Sound-only containers are recognised too, so that the error can say that the file has no video.
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
    """Whether sync bytes stand at a constant distance: 188 bytes, or 192 (with time codes), or 204 (with check bytes).

    A recording may begin in the middle of a packet, so the first sync byte may be at any place in the first packet.
    """
    for size in (188, 192, 204):
        count = min(8, len(head) // size - 1)
        if count >= 3 and any(
            all(head[start + i * size] == 0x47 for i in range(count)) for start in range(min(size, len(head)))
        ):
            return True
    return False


def _elementary_stream(head: bytes) -> str | None:
    """`h264` or `hevc` for a stream without container: a start code, then a parameter set or access unit delimiter."""
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
