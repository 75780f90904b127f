"""Interlaced video: told, de-interlaced by default, and the same picture whichever frames are asked for."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from mmllm.commands.info import info as info_command
from mmllm.video import _pyav_packets
from mmllm.video.opening import VideoDecodeError, VideoOpenError, open_video

SIZE = (144, 240)
ORDERS_ARE_KNOWN = hasattr(VideoCodecContext, "field_order")
_INTERLACED_DCT, _INTERLACED_MOTION = 0x40000, 0x20000000


def position(field: int) -> int:
    """Left edge of the moving bar in field `field`, two of which are in a frame."""
    return 10 + 3 * field


def woven(number: int, *, top_first: bool, interlaced: bool = True) -> np.ndarray:
    """Frame `number`, uint8 (H W 3): a bar that moves, with the two fields, of which each shows it at its time."""
    picture = np.full((*SIZE, 3), 60, dtype=np.uint8)
    for rows in (0, 1):
        late = interlaced and (rows == 1) == top_first
        left = position(2 * number + late)
        picture[rows::2, left : left + 24] = 220
    return picture


class Marker:
    """Marks frames as two fields, of which one is first; encoders look at the mark."""

    def __init__(self, size: tuple[int, int], mode: str) -> None:
        from av.filter import Graph

        self.graph = Graph()
        source = self.graph.add_buffer(width=size[1], height=size[0], format="rgb24", time_base=Fraction(1, 25))
        self.graph.link_nodes(source, self.graph.add("setfield", f"mode={mode}"), self.graph.add("buffersink"))
        self.graph.configure()

    def marked(self, picture: np.ndarray, number: int):
        import av

        frame = av.VideoFrame.from_ndarray(picture)
        frame.pts, frame.time_base = number, Fraction(1, 25)
        self.graph.vpush(frame)
        return self.graph.vpull()


def write(
    path: Path,
    codec: str,
    *,
    top_first: bool = True,
    frames: int = 30,
    flags: int = 0,
    options: dict[str, str] | None = None,
    interlaced: bool = True,
    first: int = 0,
) -> Path:
    """Writes frames whose times begin with that of frame `first`."""
    import av

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options or {})
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
            stream.codec_context.flags |= flags
            marker = Marker(SIZE, ("tff" if top_first else "bff") if interlaced else "prog")
            for number in range(frames):
                picture = woven(number, top_first=top_first, interlaced=interlaced)
                container.mux(stream.encode(marker.marked(picture, first + number)))
            container.mux(stream.encode(None))
    return path


def write_dv(path: Path, frames: int = 12) -> Path:
    """DV, which is interlaced by definition, bottom field first."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("dvvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 576, 720, "yuv420p"
        for number in range(frames):
            picture = np.full((576, 720, 3), 60, dtype=np.uint8)
            for rows in (0, 1):
                left = position(4 * number + 2 * (rows == 0))
                picture[rows::2, left : left + 64] = 220
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


FILES = {
    "h264 top": ("a.ts", "libx264", True, {"options": {"x264-params": "tff=1:keyint=12:bframes=2"}}),
    "h264 bottom": ("a.mp4", "libx264", False, {"options": {"x264-params": "bff=1:keyint=12:bframes=2"}}),
    "mpeg2": ("a.mpg", "mpeg2video", True, {
        "flags": _INTERLACED_DCT | _INTERLACED_MOTION, "options": {"g": "10", "bf": "2", "b": "4000000"}}),
    "mpeg4": ("a.avi", "mpeg4", False, {
        "flags": _INTERLACED_DCT | _INTERLACED_MOTION, "options": {"g": "10", "b": "4000000"}}),
}  # fmt: skip


@pytest.fixture(params=FILES)
def fields(request, tmp_path):
    """A file of two fields a frame, and which field is first."""
    name, codec, top_first, settings = FILES[request.param]
    return write(tmp_path / name, codec, top_first=top_first, **settings), top_first


def combing(picture: np.ndarray) -> float:
    """Mean difference of each row from the mean of its two neighbours."""
    rows = picture.astype(float).mean(axis=-1)
    inner, around = rows[1:-1], (rows[:-2] + rows[2:]) / 2
    return float(np.abs(inner - around).mean())


def left_edge(picture: np.ndarray) -> float:
    return float(np.nonzero(picture[20:-20].mean(axis=(0, 2)) > 140)[0].min())


def test_frames_are_deinterlaced_and_show_their_first_field(fields):
    path, _ = fields
    with open_video(path) as video:
        assert video.info.interlaced
        assert video.info.deinterlaced
        assert video.info.num_frames == 30
        clean = video.frames_by_index(np.arange(30))
    with open_video(path, deinterlace=False) as video:
        assert video.info.interlaced
        assert not video.info.deinterlaced
        combed = video.frames_by_index(np.arange(30))
    np.testing.assert_array_equal(clean.times_s, combed.times_s)
    for number in range(30):
        assert combing(combed.frames[number]) > 3
        assert combing(clean.frames[number]) < 0.3 * combing(combed.frames[number])
        assert left_edge(clean.frames[number]) == pytest.approx(position(2 * number), abs=2)


@pytest.mark.parametrize("access", ["held", "sought"])
def test_any_choice_of_frames_equals_a_full_decode(fields, access, monkeypatch):
    if access == "sought":
        monkeypatch.setattr(_pyav_packets, "_HELD_BYTES", 0)
        monkeypatch.setattr(_pyav_packets, "_SKIPPED", 4)
    path, _ = fields
    with open_video(path) as video:
        everything = np.concatenate([clip.frames for clip in video.iterate(7)])
        assert len(everything) == 30
    for chosen in ([0], [29], [13], [0, 1, 2], [5, 11, 12, 28], [29, 3, 17, 3]):
        with open_video(path) as video:
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])
    with open_video(path) as video:
        generator = np.random.default_rng(0)
        for _ in range(12):
            chosen = generator.integers(0, 30, generator.integers(1, 6))
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])


def test_without_times_frames_are_counted(tmp_path):
    path = write(tmp_path / "a.h264", "libx264", options={"x264-params": "tff=1:keyint=12:bframes=2"})
    with open_video(path) as video:
        assert video.info.time_estimated
        everything = np.concatenate([clip.frames for clip in video.iterate(7)])
        for chosen in ([0], [29], [4, 17]):
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])
        assert max(map(combing, everything)) < 4


def test_dv(tmp_path):
    path = write_dv(tmp_path / "a.mov")
    with open_video(path) as video:
        assert video.info.interlaced
        everything = np.concatenate([clip.frames for clip in video.iterate(5)])
        np.testing.assert_array_equal(video.frames_by_index([0, 6, 11]).frames, everything[[0, 6, 11]])
    with open_video(path, deinterlace=False) as video:
        combed = video.frames_by_index([6]).frames[0]
    assert combing(everything[6]) < 0.3 * combing(combed)


def test_interlacing_that_begins_in_the_middle(tmp_path):
    """Frames are judged by their own mark, not by the header or the first frame."""
    parts = []
    for number, (interlaced, options) in enumerate([(False, "keyint=12"), (True, "keyint=12:tff=1")]):
        part = write(
            tmp_path / f"{number}.h264", "libx264", frames=15, interlaced=interlaced,
            options={"x264-params": options + ":bframes=0:pic-struct=1"},
        )  # fmt: skip
        parts.append(part.read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    with open_video(path) as video:
        assert not video.info.interlaced
        everything = np.concatenate([clip.frames for clip in video.iterate(4)])
        assert len(everything) == 30
        for chosen in ([14, 15], [29], [3, 16, 22]):
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])
        assert max(map(combing, everything)) < 4
    with open_video(path, deinterlace=False) as video:
        np.testing.assert_array_equal(video.frames_by_index(range(15)).frames, everything[:15])


def test_a_late_mark_is_found_in_single_frames(tmp_path):
    """The same with times: single frames are decoded again with their neighbours once the mark is seen."""
    parts = [
        write(
            tmp_path / "0.ts", "libx264", frames=15, interlaced=False, options={"x264-params": "keyint=15:bframes=0"}
        ),
        write(tmp_path / "1.ts", "libx264", frames=15, first=15, options={"x264-params": "keyint=15:bframes=0:tff=1"}),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as video:
        everything = np.concatenate([clip.frames for clip in video.iterate(4)])
    for chosen in ([20], [3, 16, 22], [29], [15]):
        with open_video(path) as video:
            np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])
    pytest.importorskip("decord")
    with open_video(path, "decord") as video, pytest.raises(VideoDecodeError, match=r"some.*interlaced.*pyav"):
        video.frames_by_index([0])


def test_progressive_video_is_not_touched(b_frames):
    with open_video(b_frames) as video:
        assert not video.info.interlaced
        assert video.info.field_order == ("progressive" if ORDERS_ARE_KNOWN else "unknown")
        frames = video.frames_by_index(range(0, 120, 7)).frames
    with open_video(b_frames, deinterlace=False) as video:
        np.testing.assert_array_equal(video.frames_by_index(range(0, 120, 7)).frames, frames)


def test_progressive_frames_in_a_stream_whose_header_says_interlaced(tmp_path):
    """The `fiel` atom says two fields; the frames do not."""
    path = write(tmp_path / "a.mp4", "mpeg4", frames=6, interlaced=False)
    with open_video(path) as video:
        assert not video.info.interlaced
        frames = video.frames_by_index(range(6)).frames
    # The atom of bit rates gives way to `fiel` and a filling of the same length together.
    fields = b"\x00\x00\x00\x0afiel\x02\x01" + b"\x00\x00\x00\x0afree\x00\x00"
    data, count = re.subn(rb"\x00\x00\x00\x14btrt.{12}", lambda _: fields, path.read_bytes(), flags=re.DOTALL)
    assert count == 1
    path.write_bytes(data)
    with open_video(path) as video:
        assert not video.info.interlaced
        assert video.info.field_order == ("top field first" if ORDERS_ARE_KNOWN else "unknown")
        np.testing.assert_array_equal(video.frames_by_index(range(6)).frames, frames)


def test_info_tells_the_order_of_fields(tmp_path, capsys):
    path = write(tmp_path / "a.ts", "libx264", frames=5, options={"x264-params": "tff=1"})
    assert info_command((path,)) == 0
    order = "top field first" if ORDERS_ARE_KNOWN else "field order not stated"
    assert f"interlaced, {order}; de-interlaced" in capsys.readouterr().out


def test_tiny_frames_are_left_as_they_are(tmp_path):
    import av

    path = tmp_path / "tiny.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 6, 6, "yuv420p"
        stream.codec_context.flags |= _INTERLACED_DCT
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((6, 6, 3), 40 * number, dtype=np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        assert video.sample_uniform(4).frames.shape == (4, 6, 6, 3)


def test_a_change_of_size_makes_a_new_filter(tmp_path):
    import av

    data = b""
    for number, (height, width) in enumerate([(96, 128), (128, 160)]):
        part = tmp_path / f"{number}.h264"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1:bframes=0:keyint=8"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for index in range(8):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90 + 10 * index, dtype=np.uint8))
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        data += part.read_bytes()
    path = tmp_path / "both.h264"
    path.write_bytes(data)
    with open_video(path) as video:
        with pytest.warns(match="black bars"):
            everything = np.concatenate([clip.frames for clip in video.iterate(5)])
        assert everything.shape == (16, 96, 128, 3)
        np.testing.assert_array_equal(video.frames_by_index([7, 8]).frames, everything[[7, 8]])
    middle = everything[:, 48, 64].mean(axis=-1)
    np.testing.assert_allclose(middle, np.tile(90 + 10 * np.arange(8), 2), atol=3)


def test_other_backends_refuse_fields_unless_told_to_leave_them(tmp_path):
    pytest.importorskip("decord")
    path = write(tmp_path / "a.mp4", "libx264", options={"x264-params": "tff=1:keyint=12"})
    with pytest.raises(VideoOpenError, match=r"interlaced.*deinterlace=False"):
        open_video(path, "decord")
    with open_video(path, deinterlace=False) as video:
        expected = video.frames_by_index([4]).frames
    with open_video(path, "decord", deinterlace=False) as video:
        assert np.abs(video.frames_by_index([4]).frames.astype(int) - expected).mean() < 3
