"""What goes wrong with video files, by the number of the case; each must end in frames or in a typed error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from mmllm.commands.info import info as info_command
from mmllm.video.opening import (
    UPLOAD_LIMITS,
    LimitExceeded,
    NoFrames,
    NoVideoStream,
    VideoDecodeError,
    VideoLimits,
    VideoOpenError,
    VideoTimeout,
    VideoTruncated,
    open_video,
    sample_uniform,
)


def refused(capsys, path, kind: str) -> str:
    """What `mmllm info` says of a file that it must refuse, with exit code 2."""
    assert info_command((path,), json=True) == 2
    row = json.loads(capsys.readouterr().out)
    assert row["ok"] is False
    assert row["error"]["type"] == kind
    return row["error"]["message"]


def test_case_01_missing_directory_no_permission(tmp_path, capsys):
    with pytest.raises(VideoOpenError, match="No such file"):
        open_video(tmp_path / "gone.mp4")
    with pytest.raises(VideoOpenError, match=r"a directory.*fps"):
        open_video(tmp_path)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    secret.chmod(0)
    if not os.access(secret, os.R_OK):
        with pytest.raises(VideoOpenError, match="Permission"):
            open_video(secret)
    assert "gone.mp4" in refused(capsys, tmp_path / "gone.mp4", "VideoOpenError")


@pytest.mark.parametrize("content", ["empty", "text", "random", "image", "zeros"])
def test_case_02_no_video_at_all(content, tmp_path, capsys):
    from PIL import Image

    path = tmp_path / "clip.mp4"
    if content == "image":
        Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
        path.write_bytes((tmp_path / "a.png").read_bytes())
    else:
        random = np.random.default_rng(0).bytes(100_000)
        path.write_bytes({"empty": b"", "text": b"not a video\n" * 999, "random": random, "zeros": bytes(99)}[content])
    with pytest.raises(VideoOpenError, match="not a video"):
        open_video(path)
    assert "not a video" in refused(capsys, path, "VideoOpenError")


@pytest.mark.parametrize("name", ["clip.jpg", "clip", "clip.txt", "frame%03d.jpg", "a:b.mp4", "http:", "clip.m3u8"])
def test_case_03_the_name_plays_no_part(name, b_frames, tmp_path, read_number):
    path = tmp_path / name
    shutil.copy(b_frames, path)
    assert [read_number(frame) for frame in sample_uniform(path, 3).frames] == [0, 60, 119]


@pytest.mark.parametrize("name", ["with space.mp4", "quo'te\".mp4", "видео 視頻.mp4", "-dash.mp4", "x" * 196 + ".mp4"])
def test_case_04_odd_names(name, b_frames, tmp_path, capsys, monkeypatch):
    shutil.copy(b_frames, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    assert info_command((Path(name),), json=True) == 0
    assert json.loads(capsys.readouterr().out)["path"] == name
    assert len(sample_uniform(name, 3)) == 3


def test_case_05_sound_only(tmp_path, capsys):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "0 audio aac" in refused(capsys, path, "NoVideoStream")


@pytest.mark.parametrize(
    "name",
    [
        "androidx__bbb_1ch_48kHz_q10_opus.webm",
        "androidx__sample_audio_only.mp4",
        "torchcodec__nasa_13013.mp4.audio.mp3",
    ],
)
def test_case_05_sound_only_real(name, shared_videos):
    with pytest.raises(NoVideoStream, match="0 audio"):
        open_video(shared_videos / name)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4"])
def test_case_06_no_frame_count_in_the_header(suffix, tmp_path, picture, read_number):
    import av

    path = tmp_path / f"live.{suffix}"
    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == "mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libvpx-vp9" if suffix == "webm" else "libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 64, 128))))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        assert video.info.declared_frames is None
        assert video.info.num_frames == 40
        assert video.info.average_fps == pytest.approx(25, rel=1e-3)
        assert [read_number(frame) for frame in video.frames_by_index([0, 20, 39]).frames] == [0, 20, 39]


def test_case_07_no_timestamps(make_clip, read_number):
    path = make_clip("raw.h264", codec="libx264", rate=25, frames=50, container_format="h264", options={"bf": "2"})
    with open_video(path) as video:
        assert video.info.time_estimated
        clip = video.frames_by_index([0, 10, 49])
        assert [read_number(frame) for frame in clip.frames] == [0, 10, 49]
        np.testing.assert_allclose(clip.times_s, np.array([0, 10, 49]) / video.info.average_fps)


def test_case_07_no_duration(shared_videos):
    with open_video(shared_videos / "imageio__test.webm") as video:
        assert video.info.num_frames == 94
        assert video.info.duration_s == pytest.approx(3.137, abs=1e-3)
        assert not video.info.time_estimated


def test_case_08_late_start(make_clip, read_number):
    path = make_clip("late.mkv", frames=30, pts=[150 + i for i in range(30)], time_base=Fraction(1, 30))
    with open_video(path) as video:
        assert video.info.start_s == pytest.approx(5.0, abs=2e-3)
        clip = video.frames_at([0.0, 0.5])
        assert [read_number(frame) for frame in clip.frames] == [0, 15]
        np.testing.assert_allclose(clip.times_s, [0, 0.5], atol=1e-3)
        assert clip.metadata["start_s"] == video.info.start_s


@pytest.mark.parametrize(
    ("name", "start_s", "first_frame_s", "frames"),
    [
        ("androidx__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", 10.0, 0.0, 120),
        ("androidx__edit_list_positive_shift.mp4", 1.0, 1.0, 270),  # its sound starts at 0
        ("androidx__sample_edit_list_only_preroll_sync_sample.mp4", 0.0, 0.0, 16),
    ],
)
def test_case_08_edit_lists(name, start_s, first_frame_s, frames, shared_videos):
    with open_video(shared_videos / name) as video:
        assert video.info.start_s == pytest.approx(start_s)
        assert video.info.num_frames == frames
        assert video.times_s[0] == video.info.first_frame_s == first_frame_s


def test_case_09_variable_rate(make_clip):
    pts = [i * 33 for i in range(60)] + [1980 + i * 500 for i in range(20)]
    path = make_clip("vfr.mp4", frames=80, pts=pts, time_base=Fraction(1, 1000), options={"bf": "2", "g": "20"})
    with open_video(path) as video:
        assert video.info.variable_rate
        wanted_s = np.linspace(0, 11, 57)
        clip = video.frames_at(wanted_s)
        gaps = np.diff(video.times_s)
        position = np.searchsorted(video.times_s, wanted_s, side="right").clip(1, 79)
        assert (np.abs(clip.times_s - wanted_s) <= gaps[position - 1] / 2 + 1e-3).all()


def test_case_09_variable_rate_real(shared_videos):
    with open_video(shared_videos / "androidx__sample_android_slow_motion.mp4") as video:
        assert video.info.variable_rate
        assert len(video) == 7
        assert np.diff(video.times_s).min() == pytest.approx(0.033, abs=1e-3)
        assert np.diff(video.times_s).max() == pytest.approx(0.325, abs=1e-3)


TURNS = {  # display matrix (a b c d) -> what a viewer sees
    "none": ((1, 0, 0, 1), lambda p: p),
    "90": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "180": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "270": ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
    "mirror": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "flip": ((1, 0, 0, -1), lambda p: p[::-1]),
    "mirror then 90": ((0, -1, -1, 0), lambda p: np.rot90(p[:, ::-1], -1)),
    "mirror then 270": ((0, 1, 1, 0), lambda p: np.rot90(p[:, ::-1], 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_case_10_rotation_and_mirror(turn, b_frames, tmp_path):
    (a, b, c, d), seen = TURNS[turn]
    path = tmp_path / "turned.mp4"
    data = bytearray(b_frames.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: times, id, duration, then layer and volume
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    assert data[place : place + 36] == np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    data[place : place + 36] = matrix
    path.write_bytes(data)
    with open_video(b_frames) as video:
        expected = [seen(frame) for frame in video.frames_by_index([0, 33]).frames]
    with open_video(path) as video:
        clip = video.frames_by_index([0, 33])
        assert clip.frames.shape[1:3] == (video.info.height, video.info.width) == expected[0].shape[:2]
        np.testing.assert_array_equal(clip.frames, expected)
        assert video.info.mirrored == (turn in ("mirror", "flip", "mirror then 90", "mirror then 270"))
        assert video.frames_by_index([0], size=32).frames.shape[1:3] == (
            (64, 32) if video.info.rotation % 180 else (32, 64)
        )


@pytest.mark.parametrize(("name", "rotation"), [("0", 0), ("90", 90), ("180", 180), ("270", 270)])
def test_case_10_rotation_real(name, rotation, shared_videos):
    with open_video(shared_videos / f"decord__video_{name}.mov") as video:
        assert video.info.rotation == rotation
        assert (video.info.width < video.info.height) == (rotation % 180 == 90)


def test_case_11_fewer_frames_than_asked_for(make_clip, read_number):
    three = sample_uniform(make_clip("three.mp4", frames=3), 8)
    assert [read_number(frame) for frame in three.frames] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert three.valid.tolist() == [True, False, True, False, False, False, True, False]
    clip_of_one = sample_uniform(make_clip("one.mp4", frames=1), 8)
    assert clip_of_one.valid.tolist() == [True] + [False] * 7
    assert (clip_of_one.times_s == 0).all()
    assert clip_of_one.duration_s > 0


@pytest.fixture(scope="module")
def index_first(tmp_path_factory, picture):
    """A clip whose index stands before its pictures."""
    import av

    path = tmp_path_factory.mktemp("first") / "index_first.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "24", "bf": "3", "x264-params": "qp=20"})
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        for number in range(200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, 64, 128))))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fraction", [0.99, 0.5])
def test_case_12_cut_short(fraction, index_first, tmp_path, read_number):
    path = tmp_path / "cut.mp4"
    data = index_first.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.warns(VideoTruncated, match="of 200 declared frames"):
        clip = sample_uniform(path, 10)
    numbers = [read_number(frame) for frame in clip.frames]
    assert numbers[0] == 0
    assert (np.diff(numbers) > 0).all()
    assert 200 * fraction * 0.7 < numbers[-1] < 200
    np.testing.assert_allclose(clip.times_s, np.array(numbers) / 30, atol=1e-3)
    with pytest.raises(VideoDecodeError, match="cut short"):
        open_video(path, strict=True)


def test_case_12_cut_short_matroska(make_clip, tmp_path):
    data = make_clip("whole.mkv", frames=100, options={"g": "25"}).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.warns(VideoTruncated, match="declared bytes"):
        clip = sample_uniform(path, 5)
    assert clip.valid.all()


def test_case_13_cut_without_index(b_frames, tmp_path, capsys):
    path = tmp_path / "cut.mp4"
    data = b_frames.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert "not a readable video" in refused(capsys, path, "VideoOpenError")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("decord__corrupted.mp4", 49),
        ("androidx__sample_with_invalid_nalu.mp4", 29),
        ("mp4parse__no_timescale.mp4", 170),
    ],
)
def test_case_14_damaged_packets_real(name, least, shared_videos):
    with open_video(shared_videos / name) as video:
        frames = sum(len(clip) for clip in video.iterate(32, size=32))
        assert frames == video.info.num_frames == least
        assert video.damage()["decode_errors"] >= 1
        assert len(video.frames_by_index(range(least), size=32)) == least
    with pytest.raises(VideoDecodeError), open_video(shared_videos / name, strict=True) as video:
        list(video.iterate(32, size=32))


@pytest.mark.parametrize("damage", ["flipped", "zeroed"])
def test_case_14_damaged_bytes_real(damage, shared_videos, tmp_path):
    data = np.frombuffer((shared_videos / "intel__bottle-detection.mp4").read_bytes(), dtype=np.uint8).copy()
    pictures = slice(bytes(data).index(b"mdat") + 4, len(data) - 40_000)
    random = np.random.default_rng(1)
    if damage == "flipped":
        data[random.integers(pictures.start, pictures.stop, 200)] ^= 0xFF
    else:
        data[len(data) // 2 : len(data) // 2 + 20_000] = 0
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data.tobytes())
    with open_video(path) as video:
        frames = sum(len(clip) for clip in video.iterate(64, size=16))
        assert frames >= 1130
        clip = video.sample_uniform(20, size=16)
        assert clip.valid.all()


def test_case_14_one_line_is_said_and_ffmpeg_is_silent(b_frames, tmp_path):
    data = bytearray(b_frames.read_bytes())
    start = data.index(b"mdat")
    for place in range(start + 900, start + 6000, 40):
        data[place] ^= 0xFF
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    code = f"from mmllm.video.opening import *; v = open_video({str(path)!r}); v.sample_uniform(100); print(len(v))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(process.stdout) >= 50
    assert len(process.stderr.strip().splitlines()) == 1
    assert "damaged" in process.stderr


@pytest.mark.parametrize(
    ("name", "error"),
    [("mp4parse__chunk_out_of_range.mp4", VideoOpenError), ("mp4parse__test_case_1185230.mp4", NoFrames)],
)
def test_case_15_nothing_decodable_real(name, error, shared_videos):
    with pytest.raises(error, match=name):
        open_video(shared_videos / name)


def test_case_15_header_only(b_frames, index_first, tmp_path, capsys):
    data = index_first.read_bytes()
    path = tmp_path / "header.mp4"
    path.write_bytes(data[: data.index(b"mdat") + 4])
    with pytest.raises((NoFrames, VideoOpenError)):
        open_video(path)
    assert info_command((path,), json=True) == 2
    capsys.readouterr()


@pytest.mark.parametrize("name", ["torchcodec__av1_video.mkv", "androidx__sample_vvc.mp4"])
def test_case_16_codec_that_one_backend_lacks(name, shared_videos):
    assert len(sample_uniform(shared_videos / name, 4)) == 4
    pytest.importorskip("decord")
    with pytest.raises(VideoOpenError, match=r"no decoder for (av1|vvc).*pyav"):
        open_video(shared_videos / name, "decord")


PIXEL_FORMATS = [
    "yuv420p",
    "yuv422p",
    "yuv444p",
    "yuv420p10le",
    "yuv422p10le",
    "yuv444p10le",
    "gray",
    "yuvj420p",
]


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
def test_case_17_pixel_formats(pixel_format, make_clip):
    y, x = np.mgrid[0:64, 0:128]
    smooth = np.stack([x + 40, 2 * y + 60, 200 - x // 2], axis=-1).astype(np.uint8)
    codec = "mjpeg" if pixel_format == "yuvj420p" else "ffv1"
    name = f"{pixel_format}.{'avi' if codec == 'mjpeg' else 'mkv'}"
    path = make_clip(name, codec=codec, frames=3, pixel_format=pixel_format, pictures=lambda _: smooth)
    expected = smooth.astype(int)
    if pixel_format == "gray":
        expected = np.repeat((smooth @ [0.299, 0.587, 0.114]).astype(int)[..., None], 3, axis=2)
    frame = sample_uniform(path, 1).frames[0].astype(int)
    assert np.abs(frame - expected).mean() <= 4
    assert np.abs(frame - expected)[2:-2, 2:-2].max() <= 10


def test_case_17_transparency_is_laid_on_black(make_clip):
    def half_clear(_):
        rgba = np.full((64, 128, 4), 200, dtype=np.uint8)
        rgba[:, :64, 3], rgba[:, 64:, 3] = 0, 255
        return rgba

    path = make_clip("clear.mov", codec="qtrle", frames=3, pixel_format="argb", pictures=half_clear)
    frame = sample_uniform(path, 1).frames[0]
    assert (frame[:, :60] == 0).all()
    assert (frame[:, 68:] == 200).all()


@pytest.mark.parametrize(
    "name", ["androidx__hdr10-av1.mp4", "androidx__hlg10-color-test.mp4", "androidx__dolbyVision-hdr.MOV"]
)
def test_case_18_hdr(name, shared_videos):
    with open_video(shared_videos / name) as video:
        assert video.info.hdr
        plain = video.frames_by_index([1], size=200)
    with open_video(shared_videos / name, tone_map=True) as video:
        mapped = video.frames_by_index([1], size=200)
    assert mapped.frames.shape == plain.frames.shape
    assert mapped.frames.std() > plain.frames.std()  # no longer washed out


def test_case_19_size_changes_in_the_stream(make_clip, tmp_path, read_number):
    parts = [
        make_clip(f"part{i}.h264", frames=20, size=size, container_format="h264", options={"bf": "0"})
        for i, size in enumerate([(64, 128), (128, 256)])
    ]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path) as video:
        clip = video.frames_by_index([0, 19, 20, 39])
        assert clip.frames.shape == (4, 64, 128, 3)
        assert [read_number(frame) for frame in clip.frames] == [0, 19, 0, 19]


@pytest.mark.parametrize("size", [(17, 33), (2, 2), (16, 4096), (1, 1)])
def test_case_19_odd_and_tiny_sizes(size, make_clip):
    path = make_clip(
        f"{size[0]}x{size[1]}.mkv",
        codec="ffv1",
        frames=3,
        size=size,
        pixel_format="yuv444p",
        pictures=lambda number: np.full((*size, 3), 60 * number + 60, dtype=np.uint8),
    )
    clip = sample_uniform(path, 3)
    assert clip.frames.shape == (3, *size, 3)
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - [60, 120, 180]).max() < 3
    assert sample_uniform(path, 3, size=8).frames.shape[0] == 3


def test_case_20_huge_pictures_are_refused_before_memory_is_taken(tmp_path, b_frames):
    bomb = tmp_path / "bomb.gif"  # 40 bytes that ask for a canvas of 65535 x 65535
    bomb.write_bytes(
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00\x00\x00\x00\xff\xff\xff"
        b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00\x3b"
    )
    with pytest.raises((LimitExceeded, NoFrames, VideoOpenError)):
        open_video(bomb)
    for limits, message in (
        (VideoLimits(pixels=8000), r"128 x 64 = 8192 pixels"),
        (VideoLimits(frames=100), r"120 frames"),
        (VideoLimits(seconds=3), r"4 s long"),
    ):
        with pytest.raises(LimitExceeded, match=message):
            open_video(b_frames, limits=limits)
    with (
        open_video(b_frames, limits=VideoLimits(returned_bytes=100_000)) as video,
        pytest.raises(LimitExceeded, match="MiB"),
    ):
        video.frames_by_index(range(100))


def test_case_20_a_bomb_in_the_middle(make_clip, tmp_path):
    parts = [
        make_clip(f"size{i}.h264", frames=20, size=size, container_format="h264", options={"bf": "0"})
        for i, size in enumerate([(64, 128), (256, 512)])
    ]
    path = tmp_path / "growing.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(path, limits=VideoLimits(pixels=10_000)) as video:
        frames = sum(len(clip) for clip in video.iterate(8))
        assert frames <= 20
        assert video.damage()["decode_errors"] > 0


def test_case_20_time_is_limited(b_frames):
    with open_video(b_frames) as video:
        video.limits = VideoLimits(cpu_s=1e-4)
        with pytest.raises(VideoTimeout, match="processor seconds"):
            video.frames_by_index(range(120))


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_case_20_a_file_filled_with_nothing(suffix, make_clip, tmp_path):
    path = tmp_path / f"filled.{suffix}"
    shutil.copy(make_clip(f"to_be_filled.{suffix}", frames=24), path)
    os.truncate(path, 1 << 35)  # a hole that takes no space on the disk
    limits = VideoLimits(stall_s=0.3)
    with open(path, "rb") as file:
        for source in (path, file):
            with pytest.raises(VideoTimeout, match=r"no packet found within 0\.3 s"):
                open_video(source, limits=limits)


def test_case_21_the_best_stream_that_is_no_cover_art(shared_videos, tmp_path, picture, read_number):
    with open_video(shared_videos / "torchcodec__nasa_13013.mp4") as video:
        assert (video.info.width, video.info.height, video.info.num_frames) == (480, 270, 390)
        assert sum(line.split()[1] == "video" for line in video.info.streams) == 2
    with open_video(shared_videos / "torchcodec__nasa_13013.mp4", stream=0) as video:
        assert (video.info.width, video.info.height, video.info.num_frames) == (320, 180, 325)
    with pytest.raises(NoVideoStream, match="stream 1 is not a video stream"):
        open_video(shared_videos / "torchcodec__nasa_13013.mp4", stream=1)
    with open_video(shared_videos / "androidx__sample_missing_stsd.mp4") as video:
        assert video.info.num_frames == 30


@pytest.mark.parametrize("with_film", [True, False])
def test_case_21_cover_art(with_film, tmp_path, picture, read_number):
    import av

    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 512, 512, "yuvj420p"
        cover.disposition = 0x400
        film = container.add_stream("libx264" if with_film else "aac", rate=25 if with_film else 16000)
        if with_film:
            film.height, film.width, film.pix_fmt = 64, 128, "yuv420p"
        else:
            film.layout = "mono"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((512, 512, 3), 99, dtype=np.uint8))))
        container.mux(cover.encode(None))
        if with_film:
            for number in range(10):
                container.mux(film.encode(av.VideoFrame.from_ndarray(picture(number, 64, 128))))
        else:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            sound.rate = 16000
            container.mux(film.encode(sound))
        container.mux(film.encode(None))
    if with_film:
        clip = sample_uniform(path, 3)
        assert [read_number(frame) for frame in clip.frames] == [0, 4, 9]
    else:
        with pytest.raises(NoVideoStream, match="cover art"):
            open_video(path)


STUBS = {
    "sleeps": "import sys, time; sys.stdin.readline(); time.sleep(600)",
    "loops": "import sys; sys.stdin.readline()\nwhile True: pass",
    "ignores signals": (
        "import signal, sys, time; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT)];"
        "sys.stdin.readline(); time.sleep(600)"
    ),
    "dies": "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)",
    "babbles": "import sys; sys.stdin.readline(); print('what?' * 9)",
    "floods": "import sys; sys.stdin.readline()\nwhile True: sys.stdout.write('x' * 65536)",
}


@pytest.mark.parametrize("stub", STUBS)
def test_case_22_decoder_that_hangs_or_dies(stub, b_frames):
    from mmllm.video._open_options import OpenOptions
    from mmllm.video._other_backends import ChildReader
    from mmllm.video._sources import media_file

    options = OpenOptions(limits=VideoLimits(child_s=1.0))
    reader = ChildReader(media_file(b_frames), options, "decord", (sys.executable, "-c", STUBS[stub]))
    started = reader._running().pid
    with pytest.raises(VideoTimeout if stub in ("sleeps", "loops", "ignores signals") else VideoDecodeError):
        reader.frames_by_index([0, 5])
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)
    reader.close()
    assert len(sample_uniform(b_frames, 3)) == 3  # the next item goes on


def test_case_22_nothing_is_left_running_when_the_caller_dies(b_frames):
    code = (
        "import os, sys, time\n"
        "from mmllm.video._open_options import OpenOptions\n"
        "from mmllm.video._other_backends import ChildReader\n"
        "from mmllm.video._sources import media_file\n"
        "stub = 'from mmllm.video._child import end_with_parent; end_with_parent()\\nprint(flush=True)\\n'\n"
        "stub += 'while True: pass'\n"
        f"reader = ChildReader(media_file({str(b_frames)!r}), OpenOptions(), 'decord', (sys.executable, '-c', stub))\n"
        "child = reader._running()\n"
        "while not child._output.read(1): time.sleep(0.05)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends a busy child with its parent")
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(caller.stdout.readline())
    os.kill(child, 0)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    for _ in range(100):
        if not os.path.exists(f"/proc/{child}") or " Z " in open(f"/proc/{child}/stat").read():  # noqa: SIM115
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its caller")


def test_case_23_playlists_and_protocols(b_frames, tmp_path):
    other = tmp_path / "other.mp4"
    shutil.copy(b_frames, other)
    lists = {
        "concat.mp4": f"ffconcat version 1.0\nfile {other.name}\n",
        "concat.ffconcat": f"ffconcat version 1.0\nfile {other}\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other.name}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other.name}\n#EXT-X-ENDLIST\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "lavfi.mp4": "color=c=red:s=64x64",
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text)
        for source in (path, text.encode()):
            with pytest.raises(VideoOpenError, match="not a video"):
                open_video(source)
    for name in (
        f"file:{other}",
        f"concat:{other}|{other}",
        f"subfile,,start,0,end,999,,:{other}",
        f"cache:{other}",
        f"data:video/mp4;base64,{'A' * 40}",
        "http://127.0.0.1:9/x.mp4",
        "tcp://127.0.0.1:9",
        "rtsp://127.0.0.1/x",
        "pipe:0",
        "video\0.mp4",
    ):
        with pytest.raises(VideoOpenError):
            open_video(name)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[::1]", "0.0.0.0", "224.0.0.1"]
)
def test_case_23_private_addresses_are_blocked(host):
    with pytest.raises(VideoOpenError, match=r"not a public address|Errno|known"):
        open_video(f"http://{host}:9/clip.mp4", allow_url=True)


def test_case_23_an_address_is_fetched_only_when_asked_to(b_frames, monkeypatch, read_number):
    import http.server
    import threading

    from mmllm.video import _urls

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://10.1.2.3/clip.mp4")
                self.end_headers()
                return
            data = b_frames.read_bytes()
            self.send_response(200 if self.path == "/clip" else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    true = _urls.public_address
    monkeypatch.setattr(
        _urls, "public_address", lambda url, host, port: host if host == "127.0.0.1" else true(url, host, port)
    )
    try:
        with pytest.raises(VideoOpenError, match="allow_url"):
            open_video(f"{address}/clip")
        with open_video(f"{address}/clip", allow_url=True) as video:
            assert read_number(video.frames_by_index([50]).frames[0]) == 50
            assert video.info.source == f"{address}/clip"
        with pytest.raises(VideoOpenError, match="404"):
            open_video(f"{address}/gone", allow_url=True)
        with pytest.raises(VideoOpenError, match=r"10\.1\.2\.3"):
            open_video(f"{address}/away", allow_url=True)
        with pytest.raises(LimitExceeded, match="MiB"):
            open_video(f"{address}/clip", allow_url=True, limits=VideoLimits(download_bytes=1000))
    finally:
        server.shutdown()
        server.server_close()


def test_case_24_links_pipes_devices_and_paths_that_lead_out(b_frames, tmp_path, read_number):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    shutil.copy(b_frames, uploads / "mine.mp4")
    (uploads / "link.mp4").symlink_to(b_frames)
    (uploads / "inner.mp4").symlink_to(uploads / "mine.mp4")
    os.mkfifo(uploads / "pipe.mp4")
    for path in ("mine.mp4", "inner.mp4", "./mine.mp4"):
        with open_video(uploads / path, inside=uploads) as video:
            assert read_number(video.frames_by_index([4]).frames[0]) == 4
    assert len(sample_uniform(uploads / "link.mp4", 3)) == 3  # one's own links are followed
    for path in (uploads / "link.mp4", uploads / ".." / "uploads" / ".." / b_frames, b_frames, "/etc/passwd"):
        with pytest.raises(VideoOpenError, match="outside"):
            open_video(path, inside=uploads)
    for path in (uploads / "pipe.mp4", "/dev/zero", "/dev/stdin"):
        with pytest.raises(VideoOpenError, match="not a regular file"):
            open_video(path)


def test_upload_limits_are_tighter():
    own = VideoLimits()
    assert UPLOAD_LIMITS.frames < own.frames
    assert UPLOAD_LIMITS.cpu_s < own.cpu_s


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR)
