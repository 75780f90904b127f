"""What a file is that is no video, by its first bytes, and what to do with it."""

from __future__ import annotations

import re

_SOUND = "a sound file (MP3 or AAC), which has no pictures"
_PICKLE = "a pickle, which is not opened, because it can run code; write its frames to images or to a video"
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image; give it as an image"),
    (b"\x89PNG", "a PNG image; give it as an image"),
    (b"BM", "a BMP image; give it as an image"),
    (b"II*\0", "a TIFF image; give it as an image"),
    (b"MM\0*", "a TIFF image; give it as an image"),
    (b"8BPS", "a Photoshop picture; export it as PNG"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image; convert it to PNG"),
    (b"\xff\x0a", "a JPEG XL image; convert it to PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image; convert it to PNG"),
    (b"\0\0\x01\0", "an icon; convert it to PNG"),
    (b"v/1\x01", "an OpenEXR image; convert it to PNG"),
    (b"%!PS", "a PostScript file; convert it to PNG"),
    (b"{\\rtf", "a text (RTF); give the video itself"),
    (b"%PDF", "a PDF document; convert its pages to images"),
    (b"PK\x03\x04", "a zip archive (or an Office file, or NumPy's npz); unpack it and give the files in it"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip file; unpack it by gunzip"),
    (b"BZh", "a bzip2 file; unpack it by bunzip2"),
    (b"\xfd7zXZ\0", "an xz file; unpack it by unxz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; unpack it by unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the files in it"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it and give the files in it"),
    (b"PAR1", "a Parquet table; write the videos in it to files, and give those"),
    (b"ARROW1", "an Arrow table; write the videos in it to files, and give those"),
    (b"\x89HDF", "an HDF5 file; write the frames in it to images or to a video"),
    (b"\x93NUMPY", "a NumPy array; write the frames in it to images or to a video"),
    (b"SQLite format 3\0", "a database (SQLite)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; get the file by git lfs pull"),
    (b"#EXTM3U", "an HLS playlist; save its video by ffmpeg -i LIST -c copy OUT.mp4"),
    (b"ffconcat version", "a list of files for FFmpeg; join them by ffmpeg -f concat -i LIST -c copy OUT.mp4"),
    (b"[playlist]", "a playlist; give the files that it lists"),
    (b"[InternetShortcut]", "a link to a web page; download the video that it shows"),
    (b"v=0\r\n", "a description of a live stream (SDP); record the stream, and give the recording"),
    (b"v=0\n", "a description of a live stream (SDP); record the stream, and give the recording"),
    (b"d8:announce", "a torrent; download the video with it, and give that"),
    (b"DVDVIDEO", "an index of a DVD (IFO); give the VOB files beside it"),
    (b"MPLS", "a playlist of a Blu-ray disc; give the m2ts files that it lists"),
    (b"\x1f\x43\xb6\x75", "a segment of a WebM stream without its beginning; join it behind the first segment, by cat"),
    (b"WEBVTT", "subtitles; give the video that they belong to"),
    (b".RMF", "a RealMedia video; convert it by ffmpeg -i IN OUT.mp4"),
    (b"FWS", "a Flash program (SWF); record it, and give the recording"),
    (b"CWS", "a Flash program (SWF); record it, and give the recording"),
    (b"\xb7\xd8\x00\x20", "a recording of Windows Media Center (WTV); convert it by ffmpeg -i IN OUT.mp4"),
    (b"MThd", "MIDI notes, which have no pictures"),
    (b"#!AMR", "a sound file (AMR), which has no pictures"),
    (b"caff", "a sound file (CAF), which has no pictures"),
    (b"FORM", "a sound file (AIFF), which has no pictures"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program for Windows"),
    *((b"\xff%c" % second, _SOUND) for second in (0xE2, 0xE3, 0xF1, 0xF2, 0xF3, 0xF9, 0xFA, 0xFB)),
    *((b"\x80%c" % version, _PICKLE) for version in (2, 3, 4, 5)),
)
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (8, b"WEBP", "a WebP image; give it as an image"),
    (128, b"DICM", "a medical image (DICOM); convert its frames to images or to a video"),
    (257, b"ustar", "a tar archive; unpack it by tar -xf, and give the files in it"),
)
"""Bytes that stand at a place behind the beginning."""
_TEXTS: tuple[tuple[str, str], ...] = (
    (r"<mpd|<\?xml[^>]*>\s*(<!--.*?-->\s*)*<mpd", "a DASH list; save its video by ffmpeg -i LIST -c copy OUT.mp4"),
    (r"<!doctype html|<html|<head|<body|<script", "a web page (HTML): the download failed; download the video itself"),
    (r"(<\?xml[^>]*>\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing; convert it to PNG"),
    (r"(<\?xml[^>]*>\s*)?<(smil|playlist|asx)", "a playlist; give the files that it lists"),
    (r"<\?xml|<", "an XML text, perhaps a server's error message; download the video itself"),
    (r"[\[{]", "a JSON text, perhaps a server's error message or annotations; give the video itself"),
    (r"\d+\s+\d\d:\d\d:\d\d,\d+ --> ", "subtitles; give the video that they belong to"),
)


def kind_of(head: bytes) -> str:
    """What a file is that begins with `head`, and what to do with it; empty if neither is known."""
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    for place, mark, kind in _MARKS:
        if head[place : place + len(mark)] == mark:
            return kind
    if not head.strip(b"\0"):
        return "nothing but zero bytes: the download or copy was not finished; get the file again"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str:
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(encoding, "replace").lstrip()
    if sum((character < " " and character not in "\r\n\t\f") or character == "\ufffd" for character in text) > 1:
        return ""  # the last character of the head may be cut in two
    lowered = text.lower()
    for pattern, kind in _TEXTS:
        if re.match(pattern, lowered, re.DOTALL):
            return kind
    line = text.splitlines()[0][:60] if text else ""
    return f"a text that begins with {line!r}; give the video itself"
