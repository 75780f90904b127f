"""The reader as a whole: frames by index, by time, all of them; sources of every kind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.video import _pyav_decoder, _pyav_packets
from mmllm.video.opening import FrameFolder, VideoDecodeError, VideoLimits, open_video, probe, sample_uniform

CODECS = {
    "h264": ("h264.mp4", {"codec": "libx264", "options": {"g": "24", "bf": "3", "preset": "veryfast"}}),
    "h264-open": ("open.mp4", {"codec": "libx264", "options": {"x264-params": "keyint=16:bframes=3:open-gop=1"}}),
    "hevc": ("hevc.mp4", {"codec": "libx265", "options": {"x265-params": "keyint=20:bframes=4:log-level=none"}}),
    "vp9": ("vp9.webm", {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}}),
    "av1": ("av1.mp4", {"codec": "libsvtav1", "options": {"g": "20", "preset": "12"}}),
    "mpeg4": ("mpeg4.mp4", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    "mpeg2": ("mpeg2.mpg", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
    "ts": ("h264.ts", {"codec": "libx264", "options": {"g": "24", "bf": "3", "preset": "veryfast"}}),
}


@pytest.fixture(params=CODECS)
def coded(request, make_clip):
    name, fields = CODECS[request.param]
    return make_clip(name, frames=75, rate=25, **fields)


@pytest.fixture(params=["held", "sought"])
def access(request, monkeypatch):
    """Packets kept in memory, as those of small files are, or sought in the file, as those of large ones."""
    if request.param == "sought":
        monkeypatch.setattr(_pyav_packets, "_HELD_BYTES", 0)
        monkeypatch.setattr(_pyav_packets, "_SKIPPED", 4)


def test_index_drawn_into_the_pixels_comes_back_in_any_order(coded, access, read_number):
    order = np.random.default_rng(0).permutation(75)
    with open_video(coded) as video:
        assert len(video) == video.info.num_frames == 75
        one_by_one = [read_number(video.frames_by_index([i]).frames[0]) for i in order[:20]]
        assert one_by_one == order[:20].tolist()
        clip = video.frames_by_index(order)
        assert [read_number(frame) for frame in clip.frames] == order.tolist()
        np.testing.assert_allclose(clip.times_s, order / 25, atol=1e-3)
        assert not clip.in_order
        few = video.frames_by_index([3, 40, 74], size=(32, 64))
        assert [read_number(frame) for frame in few.frames] == [3, 40, 74]
        assert not video.damage()


def test_sparse_reading_is_bit_equal_to_reading_everything(coded, access):
    with open_video(coded) as video:
        everything = np.concatenate([clip.frames for clip in video.iterate(16)])
        chosen = np.array([0, 1, 13, 14, 30, 47, 73, 74])
        np.testing.assert_array_equal(video.frames_by_index(chosen).frames, everything[chosen])


def test_unreferenced_frames_are_passed_over_by_the_decoder(b_frames, monkeypatch):
    with open_video(b_frames) as video:
        given = []
        set_drop = _pyav_decoder.Decoder.drop_unreferenced
        monkeypatch.setattr(
            _pyav_decoder.Decoder, "drop_unreferenced", lambda self, drop: given.append(drop) or set_drop(self, drop)
        )
        video.frames_by_index([0, 60, 119])
        assert sum(given) > 20
        assert len(given) < 80  # nothing after the last wanted frame of a group is decoded


def test_iterate_gives_every_frame_once(b_frames, read_number):
    with open_video(b_frames) as video:
        clips = list(video.iterate(50, size=(32, 64)))
    assert [len(clip) for clip in clips] == [50, 50, 20]
    assert [read_number(frame) for clip in clips for frame in clip.frames] == list(range(120))
    np.testing.assert_allclose(np.concatenate([clip.times_s for clip in clips]), np.arange(120) / 30, atol=1e-3)


def test_the_callers_own_time_does_not_count(b_frames):
    with open_video(b_frames, limits=VideoLimits(cpu_s=0.2)) as video:
        for _ in video.iterate(40):
            begun = time.thread_time()
            while time.thread_time() - begun < 0.25:
                pass


def test_frames_at_takes_the_nearest(b_frames, read_number):
    with open_video(b_frames) as video:
        clip = video.frames_at([0.0, 0.04, 1.0, 3.99, 2.0])
        assert [read_number(frame) for frame in clip.frames] == [0, 1, 30, 119, 60]
        for wrong in (-0.1, 4.2, float("nan")):
            with pytest.raises(InputError, match="no frame at"):
                video.frames_at([wrong])


def test_repetitions_are_marked(b_frames, read_number):
    with open_video(b_frames) as video:
        clip = video.frames_by_index([5, 5, -1, 119])
    assert [read_number(frame) for frame in clip.frames] == [5, 5, 119, 119]
    assert clip.valid.tolist() == [True, False, True, False]


def test_indices_out_of_range_are_refused(b_frames):
    with open_video(b_frames) as video:
        for wrong in ([120], [-121], [1.5], ["a"]):
            with pytest.raises(InputError):
                video.frames_by_index(wrong)
        assert len(video.frames_by_index([])) == 0


def test_a_part_of_the_video(b_frames, read_number):
    clip = sample_uniform(b_frames, 4, start_s=1.0, end_s=2.0)
    assert [read_number(frame) for frame in clip.frames] == [30, 40, 50, 60]
    np.testing.assert_allclose(clip.times_s, [1.0, 4 / 3, 5 / 3, 2.0], atol=1e-3)
    assert clip.duration_s == pytest.approx(4.0)
    assert read_number(sample_uniform(b_frames, 1, start_s=1.01, end_s=1.02).frames[0]) == 30
    for start_s, end_s in ((2.0, 1.0), (-1.0, 1.0), (9.0, 10.0)):
        with pytest.raises(InputError, match="no part"):
            sample_uniform(b_frames, 4, start_s=start_s, end_s=end_s)


def test_transform_is_applied_frame_by_frame(b_frames):
    seen = []
    clip = sample_uniform(b_frames, 5, transform=lambda frame: seen.append(frame.shape) or frame[:8, :8])
    assert seen == [(64, 128, 3)] * 5
    assert clip.frames.shape == (5, 8, 8, 3)


def test_size_is_the_shorter_edge_or_both(b_frames):
    with open_video(b_frames) as video:
        assert video.frames_by_index([0], size=32).frames.shape == (1, 32, 64, 3)
        assert video.frames_by_index([0], size=(48, 50)).frames.shape == (1, 48, 50, 3)
        with pytest.raises(InputError, match="positive"):
            video.frames_by_index([0], size=0)


def test_bytes_and_file_objects(b_frames, read_number, tmp_path):
    data = b_frames.read_bytes()

    class Pipe(io.RawIOBase):
        def read(self, size=-1):
            return data if size == -1 else b""

    for source in (data, bytearray(data), io.BytesIO(data), open(b_frames, "rb"), Pipe()):  # noqa: SIM115
        with open_video(source) as video:
            assert [read_number(frame) for frame in video.frames_by_index([7, 90]).frames] == [7, 90]


def test_folder_of_frames_in_the_order_of_their_numbers(tmp_path, picture, read_number):
    from PIL import Image

    for number in range(12):
        Image.fromarray(picture(number, 64, 128)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    for source, fps in ((FrameFolder(path=tmp_path, fps=5), None), (tmp_path, 5.0), (str(tmp_path), 5.0)):
        with open_video(source, fps=fps) as video:
            assert (video.info.num_frames, video.info.duration_s, video.info.average_fps) == (12, 2.4, 5)
            clip = video.frames_at([0.0, 2.0, 2.2])
            assert [read_number(frame) for frame in clip.frames] == [0, 10, 11]
            np.testing.assert_allclose(clip.times_s, [0, 2.0, 2.2])


def test_arrays(picture, read_number):
    frames = np.stack([picture(number, 64, 128) for number in range(6)])
    for source in (frames, list(frames)):
        clip = sample_uniform(source, 3, fps=2.0)
        assert [read_number(frame) for frame in clip.frames] == [0, 2, 5]
        assert clip.duration_s == 3.0
    with pytest.raises(InputError, match="fps"):
        open_video(frames)
    with pytest.raises(InputError, match="uint8"):
        open_video(frames.astype(np.float32), fps=1)
    with pytest.raises(InputError, match="fps is for"):
        open_video(b"....ftyp", fps=3)


def test_variable_times_are_exact(make_clip, read_number):
    pts = [0, 20, 47, 48, 300, 333, 1500, 1501, 2999, 3000]
    path = make_clip("jumps.mp4", frames=10, pts=pts, time_base=Fraction(1, 1000), options={"bf": "2"})
    with open_video(path) as video:
        assert video.info.variable_rate
        np.testing.assert_allclose(video.times_s, np.array(pts) / 1000, atol=1e-3)
        assert read_number(video.frames_at([0.25]).frames[0]) == 4


def test_probe_reads_no_more_than_it_must(b_frames):
    info = probe(b_frames)
    assert (info.num_frames, info.width, info.height, info.codec) == (120, 128, 64, "h264")
    assert info.duration_s == pytest.approx(4.0)
    assert info.average_fps == pytest.approx(30.0)


def test_a_closed_reader_says_so(b_frames):
    video = open_video(b_frames)
    video.close()
    video.close()
    with pytest.raises(VideoDecodeError, match="closed"):
        video.frames_by_index([0])


def test_unknown_backend_and_impossible_limits():
    with pytest.raises(InputError, match="torchcodec"):
        open_video("x.mp4", backend="opencv")
    with pytest.raises(InputError, match="pixels"):
        VideoLimits(pixels=0)


def test_importing_the_reader_loads_no_decoder_and_no_torch():
    code = (
        "import sys, mmllm.video.opening, mmllm.video.sampling, mmllm.commands.info, mmllm.video.quarantine;"
        "print([name for name in ('torch', 'av', 'decord', 'torchcodec', 'PIL') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert child.stdout.strip() == "[]", child.stdout
