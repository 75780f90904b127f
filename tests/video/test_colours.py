"""Colours: the matrix by tag or by size, the range, and transparency laid on black, in every format that keeps it."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from versions import needs_pyav_17_1

from mmllm.commands.info import info as info_command
from mmllm.video import _pyav_open, _pyav_packets
from mmllm.video.opening import VideoDecodeError, VideoOpenError, open_video

YUV = (110, 100, 170)
WEIGHTS = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722), "BT.2020": (0.2627, 0.0593), "FCC": (0.30, 0.11)}
"""Weights of red and blue in the luma, by the standards."""


def rgb(matrix: str, *, full_range: bool = False) -> np.ndarray:
    """float64 (3): what `YUV` is in RGB by the standard."""
    red, blue = WEIGHTS[matrix]
    luma, cb, cr = (float(value) for value in YUV)
    luma, cb, cr = (luma, cb - 128, cr - 128) if full_range else (
        (luma - 16) * 255 / 219, (cb - 128) * 255 / 224, (cr - 128) * 255 / 224)  # fmt: skip
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b])


def plain(
    path: Path,
    size: tuple[int, int],
    codec: str = "libx264",
    *,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    frames: int = 4,
    **tags: int,
) -> Path:
    """A video of one colour, `YUV` in 8 bits; `tags` are attributes of the encoder and of the frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(frames):
            frame = av.VideoFrame(size[1], size[0], pixel_format)
            for plane, value in zip(frame.planes, YUV, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            for name, value in tags.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


HD, SD = (720, 1280), (576, 720)
BY_TAG = {"colorspace": 1, "color_primaries": 1, "color_trc": 1}
CASES = {
    "untagged 720 rows": (HD, {}, "BT.709", True),
    "untagged 1080 rows": ((1080, 640), {}, "BT.709", True),
    "untagged 576 rows": (SD, {}, "BT.601", True),
    "untagged 718 rows": ((718, 1280), {}, "BT.601", True),
    "untagged portrait": ((1280, 720), {}, "BT.709", True),
    "tagged BT.601 in HD": (HD, {"colorspace": 6}, "BT.601", False),
    "tagged BT.470BG in HD": (HD, {"colorspace": 5}, "BT.601", False),
    "tagged BT.709 in SD": (SD, {"colorspace": 1}, "BT.709", False),
    "tagged FCC": (SD, {"colorspace": 4}, "FCC", False),
    "tagged BT.2020": (HD, {"colorspace": 9}, "BT.2020", False),
    "untagged matrix, primaries of BT.2020": (HD, {"color_primaries": 9}, "BT.2020", True),
    "untagged matrix, PQ": (SD, {"color_trc": 16}, "BT.2020", True),
    "reserved number": (SD, {"colorspace": 3}, "BT.601", True),
}


@needs_pyav_17_1
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_matrix_by_tag_or_by_rows(case, full_range, tmp_path):
    size, tags, matrix, assumed = CASES[case]
    options = {"preset": "ultrafast", "qp": "0"}
    path = plain(tmp_path / "a.mp4", size, options=options, **tags, **({"color_range": 2} if full_range else {}))
    with open_video(path) as video:
        assert (video.info.matrix, video.info.matrix_assumed) == (matrix, assumed)
        assert video.info.full_range == full_range
        for shape in (None, (40, 60)):
            picture = video.frames_by_index([2], size=shape).frames[0]
            np.testing.assert_allclose(
                picture.reshape(-1, 3).mean(axis=0), rgb(matrix, full_range=full_range), atol=3.2
            )


@needs_pyav_17_1
def test_hdr_without_a_matrix_is_tone_mapped_by_bt2020(tmp_path):
    options = {"preset": "ultrafast", "qp": "0"}
    untagged = plain(tmp_path / "a.mp4", SD, options=options, color_trc=16, color_primaries=9)
    tagged = plain(tmp_path / "b.mp4", SD, options=options, color_trc=16, color_primaries=9, colorspace=9)
    pictures = []
    for path in (untagged, tagged):
        with open_video(path, tone_map=True) as video:
            assert video.info.hdr
            pictures.append(video.frames_by_index([0]).frames)
    np.testing.assert_array_equal(*pictures)


def test_jpeg_and_vp8_are_bt601_of_any_size(tmp_path):
    jpeg = plain(tmp_path / "a.avi", HD, "mjpeg", pixel_format="yuvj420p", color_range=2)
    with open_video(jpeg) as video:
        assert (video.info.matrix, video.info.full_range) == ("BT.601", True)
        picture = video.frames_by_index([1], size=(40, 60)).frames[0]
        np.testing.assert_allclose(picture.reshape(-1, 3).mean(axis=0), rgb("BT.601", full_range=True), atol=3)
    vp8 = plain(tmp_path / "a.webm", HD, "libvpx", options={"deadline": "realtime", "cpu-used": "8"})
    with open_video(vp8) as video:
        assert video.info.matrix == "BT.601"


def test_a_matrix_that_cannot_be_converted_is_refused_by_name(tmp_path):
    path = plain(tmp_path / "a.mp4", SD, pixel_format="yuv444p", options={"preset": "ultrafast"}, colorspace=8)
    with pytest.raises(VideoDecodeError, match=r"YCgCo.*ffmpeg"):
        open_video(path)


@needs_pyav_17_1
def test_info_prints_the_matrix(tmp_path, capsys):
    assert info_command((plain(tmp_path / "a.mp4", HD, options={"preset": "ultrafast"}),)) == 0
    assert "colours by BT.709, assumed for 720 rows, limited range" in capsys.readouterr().out
    assert info_command((plain(tmp_path / "b.mp4", SD, options={"preset": "ultrafast"}, **BY_TAG),)) == 0
    assert "colours by BT.709, limited range" in capsys.readouterr().out


@pytest.mark.parametrize(
    "case", ["untagged 720 rows", "tagged BT.601 in HD", "tagged BT.709 in SD", "untagged 576 rows"]
)
def test_decord_gives_the_same_colours(case, tmp_path):
    pytest.importorskip("decord")
    size, tags, matrix, _ = CASES[case]
    path = plain(tmp_path / "a.mp4", size, options={"preset": "ultrafast", "qp": "0"}, **tags)
    with open_video(path, "decord") as video:
        for shape in (None, (40, 60)):
            picture = video.frames_by_index([2], size=shape).frames[0]
            np.testing.assert_allclose(picture.reshape(-1, 3).mean(axis=0), rgb(matrix), atol=3)


# --- Transparency --------------------------------------------------------------------------------------------------


def veiled(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """uint8 (H W 4): grey that is clear in the left third, half clear in the middle, solid on the right.

    What is clear is white below, so that a reader that drops transparency shows white.
    """
    picture = np.full((height, width, 4), 200, dtype=np.uint8)
    picture[..., 3] = 255
    third = width // 3
    picture[:, :third] = (255, 255, 255, 0)
    picture[:, third : 2 * third, 3] = 128
    picture[: height // 4, 2 * third :, :3] = 40 + 20 * number
    return picture


def write_veiled(path: Path, codec: str, pixel_format: str, options: dict[str, str]) -> Path:
    """Nine frames."""
    import av

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = 96, 128, pixel_format
            for number in range(9):
                frame = av.VideoFrame.from_ndarray(veiled(number), format="rgba")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


FORMATS = {
    "VP9 in WebM": ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0", "g": "4"}),
    "VP8 in WebM": ("a.webm", "libvpx", "yuva420p", {"b": "4M", "crf": "4", "g": "4", "auto-alt-ref": "0"}),
    "VP9 in Matroska": ("a.mkv", "libvpx-vp9", "yuva420p", {"crf": "4", "b": "0", "lag-in-frames": "0"}),
    "ProRes 4444": ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
    "PNG in MOV": ("a.mov", "png", "rgba", {}),
    "Animation in MOV": ("a.mov", "qtrle", "argb", {}),
    "FFV1 RGB": ("a.mkv", "ffv1", "bgra", {}),
    "FFV1 YUV": ("a.mkv", "ffv1", "yuva420p", {}),
    "FFV1 planar RGB": ("a.mkv", "ffv1", "gbrap10le", {}),
    "Ut Video": ("a.avi", "utvideo", "gbrap", {}),
}


@pytest.mark.parametrize("access", ["held", "sought"])
@pytest.mark.parametrize("kind", FORMATS)
def test_transparent_pixels_are_laid_on_black(kind, access, tmp_path, monkeypatch):
    if access == "sought":
        monkeypatch.setattr(_pyav_packets, "_HELD_BYTES", 0)
        monkeypatch.setattr(_pyav_packets, "_SKIPPED", 1)
    name, codec, pixel_format, options = FORMATS[kind]
    path = write_veiled(tmp_path / name, codec, pixel_format, options)
    with open_video(path) as video:
        assert video.info.transparent
        assert video.info.num_frames == 9
        everything = np.concatenate([clip.frames for clip in video.iterate(4)]).astype(int)
        for chosen in ([8], [5, 2], [0, 1, 7]):
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])
    for number, picture in enumerate(everything):
        assert np.abs(picture[:, :36]).max() <= 8
        assert np.abs(picture[40:, 50:80] - 100).mean() <= 4
        assert np.abs(picture[40:, 92:] - 200).mean() <= 4
        assert np.abs(picture[4:16, 92:] - (40 + 20 * number)).mean() <= 8


def test_gif(tmp_path):
    from PIL import Image

    pictures = []
    for number in range(4):
        picture = Image.new("P", (64, 48), 0)
        picture.putpalette([255, 255, 255, 200, 40, 40])
        picture.paste(1, (10 * number, 10, 10 * number + 12, 30))
        pictures.append(picture)
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], transparency=0, disposal=2, duration=100)
    with open_video(path) as video:
        assert video.info.transparent
        frame = video.frames_by_index([2]).frames[0]
    assert (frame[:8] == 0).all()
    np.testing.assert_allclose(frame[15, 25], (200, 40, 40), atol=2)


def test_webm_without_transparency_uses_the_ordinary_decoder(make_clip):
    with open_video(make_clip("opaque.webm", codec="libvpx-vp9", frames=6, options={"deadline": "realtime"})) as video:
        assert not video.info.transparent
        assert video._decoder.codec.name == "vp9"


def test_an_ffmpeg_without_libvpx_is_told(tmp_path, monkeypatch):
    path = write_veiled(tmp_path / "a.webm", "libvpx-vp9", "yuva420p", {})
    monkeypatch.setattr(_pyav_open, "_ALPHA_DECODERS", {"vp9": "no-such-decoder"})
    with pytest.raises(VideoOpenError, match=r"a\.webm: its transparency needs the decoder no-such-decoder"):
        open_video(path)


def test_decord_refuses_transparency(tmp_path):
    pytest.importorskip("decord")
    path = write_veiled(tmp_path / "a.webm", "libvpx-vp9", "yuva420p", {})
    with pytest.raises(VideoOpenError, match=r"decord drops its transparency.*pyav"):
        open_video(path, "decord")
