"""Files that are no video are named by what they are, with what to do; others that look odd are read."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from mmllm.cli import main
from mmllm.video.opening import NoVideoStream, VideoOpenError, open_video

HLS = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:9,\nclip.ts\n"
DASH = b'<?xml version="1.0"?>\n<!-- made by x -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"/>'
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><body>Not found</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"


def still(image_format: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(data, image_format)
    return data.getvalue()


def archive(kind: str) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("clip.mp4", b"x")
    else:
        with tarfile.open(fileobj=data, mode="w") as file:
            file.addfile(tarfile.TarInfo("clip.mp4"), io.BytesIO())
    return data.getvalue()


def picture_of_heif(brand: bytes) -> bytes:
    return (
        b"\0\0\0\x18ftyp"
        + brand
        + b"\0\0\0\0mif1"
        + brand
        + b"\0\0\0\x10meta"
        + bytes(8)
        + b"\0\0\0\x0cmdat"
        + bytes(4)
    )


KINDS = {
    "jpeg": (still("JPEG"), "a JPEG image"),
    "png": (still("PNG"), "a PNG image"),
    "bmp": (still("BMP"), "a BMP image"),
    "tiff": (still("TIFF"), "a TIFF image"),
    "webp": (still("WEBP"), "a WebP image"),
    "heic": (picture_of_heif(b"heic"), "an image of the HEIF family"),
    "avif": (picture_of_heif(b"avif"), "an image of the HEIF family"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "zip": (archive("zip"), "a zip archive"),
    "tar": (archive("tar"), "a tar archive"),
    "gzip": (gzip.compress(b"x" * 99), "gunzip"),
    "parquet": (b"PAR1" + bytes(99), "a Parquet table"),
    "hls": (HLS, "an HLS playlist.*ffmpeg -i"),
    "dash": (DASH, "a DASH list.*ffmpeg -i"),
    "concat": (b"ffconcat version 1.0\nfile clip.mp4\n", "a list of files for FFmpeg"),
    "page": (PAGE, r"a web page \(HTML\): the download failed"),
    "json": (b'{"error": "expired"}', "a JSON text"),
    "lfs": (LFS, "git lfs pull"),
    "utf-16": ("a,b\r\n".encode("utf-16") * 20, "a text that begins with 'a,b'"),
    "subtitles": (b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", "subtitles"),
    "zeros": (bytes(5000), "nothing but zero bytes"),
    "numpy": (b"\x93NUMPY\x01\0v\0{'descr': '|u1'}", "a NumPy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "mp3": (b"\xff\xfb\x90\x64" + bytes(99), "a sound file"),
    "realmedia": (b".RMF\0\0\0\x12", "RealMedia"),
    "webm segment": (b"\x1f\x43\xb6\x75\x01\xff\xff", "a segment of a WebM stream without its beginning"),
    "rtf": (b"{\\rtf1\\ansi", "RTF"),
    "icon": (b"\0\0\x01\0\x01\0", "an icon"),
    "pickle": (b"\x80\x04\x95" + bytes(99), "a pickle, which is not opened"),
    "dicom": (bytes(128) + b"DICM" + bytes(99), "DICOM"),
    "torrent": (b"d8:announce35:http://example.org", "a torrent"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_video_is_named(name, tmp_path, capsys):
    data, kind = KINDS[name]
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(VideoOpenError, match=rf"not a video:.*{kind}"):
            open_video(source)
    with pytest.raises(SystemExit) as exit_:
        main(["info", str(path)])
    assert exit_.value.code == 2
    message = capsys.readouterr().out
    assert not {"None", "VideoLimits", "open_video", "b'"} & set(message.replace("(", " ").split())


def test_bytes_of_no_known_kind_are_shown():
    with pytest.raises(VideoOpenError, match="not a video of a known container: it begins with"):
        open_video(np.random.default_rng(0).bytes(9999))


def test_sound_alone_is_named(tmp_path):
    import av

    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(NoVideoStream, match=r"nothing to see.*0 audio aac"):
        open_video(path)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mxf", "mpeg2video"), ("mxf", "libx264"), ("nut", "ffv1"), ("nut", "libx264"), ("dv", "dvvideo")],
)
def test_containers_of_studios_and_cameras_are_read(suffix, codec, make_clip, read_number):
    size = (576, 720) if codec == "dvvideo" else (64, 128)
    path = make_clip(f"{codec}.{suffix}", codec=codec, rate=25, frames=30, size=size)
    for source in (path, path.read_bytes()):
        with open_video(source) as video:
            assert (video.info.container, video.info.num_frames) == (suffix, 30)
            assert video.info.duration_s == pytest.approx(1.2)
            clip = video.frames_by_index([0, 14, 29])
            assert [read_number(frame) for frame in clip.frames] == [0, 14, 29]
            np.testing.assert_allclose(clip.times_s, [0, 0.56, 1.16])
