"""Files that grow, pipes, folders that fill: which frames come, when they are shown, gaps, ends, refusals."""

import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmllm.errors import InputError
from mmllm.synthetic.rendering import encode
from mmllm.video.errors import LimitExceeded, NoFrames, NoVideoStream, VideoOpenError
from mmllm.video.limits import VideoLimits
from mmllm.video.live.folder import names_in_order
from mmllm.video.live.sources import follow
from tests.support.streams import grey_frames, numbers_of, write_stream

FPS = 5


def followed(source, rate=FPS, **options):
    options = {"idle_s": 0.0, **options}
    return list(follow(str(source), rate, **options))


@pytest.mark.parametrize("form", ["mpegts", "matroska", "mp4", "flv"])
def test_all_frames_of_a_file_come_with_their_times(tmp_path, form):
    path = tmp_path / "stream"
    write_stream(path, grey_frames(20), FPS, form=form)
    frames = followed(path)
    assert numbers_of([frame.pixels for frame in frames]) == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / FPS, abs=2e-3)
    assert not any(frame.gap for frame in frames)


def test_an_ordinary_mp4_with_its_index_at_the_end_is_read(tmp_path):
    encode([grey_frames(20)], 64, FPS, tmp_path / "clip.mp4", crf=20)
    assert len(followed(tmp_path / "clip.mp4")) == 20


def test_a_lower_rate_takes_fewer_frames(tmp_path):
    path = tmp_path / "stream.ts"
    write_stream(path, grey_frames(30), FPS)
    frames = followed(path, rate=1)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 1, 2, 3, 4, 5], abs=2e-3)


def test_a_file_is_read_while_it_grows(tmp_path):
    whole, growing = tmp_path / "whole.ts", tmp_path / "growing.ts"
    write_stream(whole, grey_frames(40), FPS)
    data = whole.read_bytes()
    growing.write_bytes(data[: len(data) // 4])
    seen: list[int] = []
    seen_before_end: list[int] = []

    def write() -> None:
        with growing.open("ab") as file:
            for start in range(len(data) // 4, len(data), len(data) // 8):
                time.sleep(0.2)
                seen_before_end[:] = seen
                file.write(data[start : start + len(data) // 8])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    for frame in follow(str(growing), FPS, idle_s=1.5):
        seen += numbers_of([frame.pixels])
    writer.join()
    assert seen == list(range(40))
    assert seen_before_end


def test_a_gap_is_told_and_the_clock_is_kept(tmp_path):
    stamps_s = [number / FPS + (30.0 if number >= 10 else 0.0) for number in range(20)]
    write_stream(tmp_path / "stream.ts", grey_frames(20), FPS, stamps_s=stamps_s)
    frames = followed(tmp_path / "stream.ts")
    assert [frame.time_s for frame in frames] == pytest.approx(stamps_s, abs=2e-3)
    gaps = {number: frame.gap for number, frame in enumerate(frames) if frame.gap}
    assert list(gaps) == [10]
    assert gaps[10].end_s - gaps[10].start_s == pytest.approx(30.2, abs=2e-3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_goes_on_with_its_next_writer(tmp_path):
    whole, pipe = tmp_path / "whole.ts", tmp_path / "pipe"
    write_stream(whole, grey_frames(10), FPS)
    os.mkfifo(pipe)

    def write() -> None:
        for pause_s in (0.0, 2.5):
            time.sleep(pause_s)
            with pipe.open("wb") as file:
                file.write(whole.read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    frames = followed(pipe, idle_s=3.5, gap_s=1.0)
    writer.join()
    assert numbers_of([frame.pixels for frame in frames]) == [*range(10), *range(10)]
    assert [number for number, frame in enumerate(frames) if frame.gap] == [10]
    gap = frames[10].gap
    assert not gap.measured
    assert 2.0 < gap.end_s - gap.start_s < 4.5
    assert all(b.time_s > a.time_s for a, b in pairwise(frames))


def test_a_stream_ends_when_it_is_told_to(tmp_path):
    write_stream(tmp_path / "stream.ts", grey_frames(10), FPS)
    start, seen = time.monotonic(), []
    for frame in follow(str(tmp_path / "stream.ts"), FPS, idle_s=60.0, stopped=lambda: len(seen) >= 5):
        seen.append(frame)
    assert len(seen) >= 5
    assert time.monotonic() - start < 30


def test_images_of_a_folder_come_at_their_numbers(tmp_path):
    for number in (8, 9, 10, 11, 90):
        Image.fromarray(grey_frames(12)[number % 12]).save(tmp_path / f"frame_{number}.png")
    frames = followed(tmp_path, fps=FPS, idle_s=1.0)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.2, 0.4, 0.6, 16.4])
    assert [number for number, frame in enumerate(frames) if frame.gap] == [4]


def test_clips_of_a_folder_follow_each_other_and_a_broken_one_is_told(tmp_path):
    for number in range(2):
        write_stream(tmp_path / f"part{number}.ts", grey_frames(10), FPS)
    (tmp_path / "part05.ts").write_bytes(b"no video at all")
    later = threading.Timer(1.0, write_stream, (tmp_path / "part10.ts", grey_frames(10), FPS))
    later.start()
    told: list[str] = []
    frames = followed(tmp_path, idle_s=3.0, skipped=told.append)
    later.join()
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(30) / FPS, abs=5e-3)
    assert numbers_of([frame.pixels for frame in frames]) == [*range(10)] * 3
    assert len(told) == 1
    assert "part05.ts" in told[0]


def test_stray_files_of_a_folder_are_told_once_and_hide_no_image_that_comes_later(tmp_path):
    strays = {"thumb.png": "ends in its number", "readme.txt": "not a video", "zebra_1.jpg": "not a readable image"}

    def save(numbers):
        for number in numbers:
            Image.fromarray(grey_frames(20)[number]).save(tmp_path / f"frame_{number:05}.png")

    save(range(10))
    (tmp_path / "thumb.png").write_bytes((tmp_path / "frame_00000.png").read_bytes())
    (tmp_path / "readme.txt").write_text("these are words " * 400)
    (tmp_path / "zebra_1.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(400))
    told: list[str] = []
    later = threading.Timer(1.5, save, (range(10, 20),))
    later.start()
    frames = followed(tmp_path, fps=FPS, idle_s=3.0, skipped=told.append)
    later.join()
    assert numbers_of([frame.pixels for frame in frames]) == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / FPS)
    assert len(told) == len(strays)
    for name, why in strays.items():
        reason = next(reason for reason in told if name in reason)
        assert why in reason
        assert reason.count(str(tmp_path)) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="all files can be read by root")
def test_a_file_that_may_not_be_read_is_told(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_2.png")
    (tmp_path / "frame_2.png").chmod(0)
    told: list[str] = []
    assert len(followed(tmp_path, idle_s=1.0, skipped=told.append)) == 1
    assert told == [f"{tmp_path / 'frame_2.png'}: Permission denied"]


@pytest.mark.parametrize("age_s", [100.0, -100.0])
def test_an_empty_file_keeps_no_folder_open_and_a_clock_that_goes_wrong_hides_no_image(tmp_path, age_s):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_1.png")
    (tmp_path / "later").touch()
    for name in ("frame_1.png", "later"):
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    until = time.monotonic() + 20
    assert len(followed(tmp_path, idle_s=0.5, stopped=lambda: time.monotonic() > until)) == 1
    assert time.monotonic() < until


def test_names_are_sorted_by_their_numbers():
    names = ["b2", "b10", "a", "b1.5", "b1", "\u00b2"]
    assert sorted(names, key=names_in_order) == ["a", "b1", "b1.5", "b2", "b10", "\u00b2"]


@pytest.mark.parametrize(
    ("source", "options", "kind", "said"),
    [
        ("missing.ts", {}, VideoOpenError, "No such file"),
        ("rtsp://camera/live", {}, InputError, "--allow-address"),
        ("http://example.org/live.ts", {"allow_address": True}, InputError, "only rtsp"),
        ("empty.ts", {}, NoFrames, "nothing to see"),
        ("text.ts", {}, VideoOpenError, "not a video"),
        ("sound.wav", {}, VideoOpenError, "not a video"),
        ("folder", {}, NoFrames, "nothing to see"),
        ("unnumbered", {}, NoFrames, "nothing to see"),
        ("/dev/null", {}, VideoOpenError, "neither a file"),
        ("stream.ts", {"rate": 0}, InputError, "rate must be a positive"),
        ("stream.ts", {"rate": float("nan")}, InputError, "rate must be a positive"),
        ("stream.ts", {"fps": -1}, InputError, "fps must be a positive"),
        ("stream.ts", {"idle_s": -1}, InputError, "idle_s must be zero or more"),
        ("stream.ts", {"gap_s": 0}, InputError, "gap_s must be a positive"),
        ("stream.ts", {"limits": VideoLimits(pixels=100)}, LimitExceeded, "pixels a frame"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, source, options, kind, said):
    (tmp_path / "empty.ts").touch()
    (tmp_path / "text.ts").write_text("these are words " * 400)
    (tmp_path / "sound.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt " + bytes(5000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "unnumbered").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "unnumbered" / "frame.png")
    os.utime(tmp_path / "unnumbered" / "frame.png", (1, 1))
    write_stream(tmp_path / "stream.ts", grey_frames(5), FPS)
    path = source if "/" in source else str(tmp_path / source)
    with pytest.raises(kind, match=said):
        followed(path, **options)


def test_a_file_without_pictures_is_refused(tmp_path):
    import av

    path = tmp_path / "sound.ts"
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for number in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(NoVideoStream):
        followed(Path(path))
