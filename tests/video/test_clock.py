"""One clock, the player's: where it starts, how long the last frame lasts, and clocks that are broken."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from versions import needs_pyav_17_1

from mmllm.video import _pyav_packets
from mmllm.video.opening import ClockBroken, VideoOpenError, open_video, probe

CASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"
SUFFIX = {"mp4": "mp4", "matroska": "mkv", "mpegts": "ts", "flv": "flv"}
IN_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
WRAP_S = 2**33 / 90_000
"""MPEG-TS counts to 2^33 and then begins at 0 again."""


def steady(count: int, start_s: float = 0.0, fps: int = 25) -> list[float]:
    """When each frame is shown, in seconds."""
    return [start_s + number / fps for number in range(count)]


def written(path: Path, *parts: bytes) -> Path:
    """A file of these parts, joined byte by byte."""
    path.write_bytes(b"".join(parts))
    return path


@pytest.fixture(params=["held", "sought"])
def access(request, monkeypatch):
    """Packets kept in memory, as those of small files are, or sought in the file, as those of large ones."""
    if request.param == "sought":
        monkeypatch.setattr(_pyav_packets, "_HELD_BYTES", 0)
        monkeypatch.setattr(_pyav_packets, "_SKIPPED", 4)


@pytest.fixture
def read(tmp_path, read_number):
    """Reads a file in every way; all must agree. Gives the reader's times, info, numbers of the frames and warnings."""

    class Reading:
        def __init__(self, path: Path, *parts: bytes) -> None:
            path = written(path, *parts) if parts else path
            with warnings.catch_warnings(record=True) as records:
                warnings.simplefilter("always")
                with open_video(path) as video:
                    before, count = video.info, len(video)
                    chosen = np.random.default_rng(0).permutation(count)
                    sparse = video.frames_by_index(chosen)
                    some = video.frames_by_index([0, count // 3, count - 1])
                    clips = list(video.iterate(16))
                    self.info, self.times_s = video.info, video.times_s
            self.warnings = [str(record.message) for record in records if record.category is ClockBroken]
            everything = np.concatenate([clip.frames for clip in clips])
            self.numbers = [read_number(frame) for frame in everything]
            np.testing.assert_array_equal(sparse.frames, everything[chosen])
            np.testing.assert_array_equal(some.frames, everything[[0, count // 3, count - 1]])
            np.testing.assert_allclose(np.concatenate([clip.times_s for clip in clips]), self.times_s, atol=1e-9)
            assert before == self.info
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ClockBroken)
                assert probe(path).duration_s == self.info.duration_s
            assert (np.diff(self.times_s) > 0).all()

    return lambda suffix, *parts: Reading(tmp_path / f"film.{suffix}", *parts)


# --- the last frame ----------------------------------------------------------------------------------------


@needs_pyav_17_1
@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_the_last_frame_lasts_as_its_packet_says(kind, b_frames, read, film):
    reading = read(SUFFIX[kind], film(kind, steady(50), b_frames=b_frames, last_s=9.0))
    assert reading.info.duration_s == pytest.approx(1.96 + 9.0, abs=2e-3)
    assert reading.info.variable_rate
    assert not reading.info.time_estimated
    assert reading.numbers == list(range(50))


def test_slides_that_are_shown_for_minutes(read, film):
    times_s = np.cumsum([0, 5, 12, 40, 8, 70, 3, 25, 90, 4, 33, 21, 9]).tolist()
    for kind in ("mp4", "matroska"):
        reading = read(SUFFIX[kind], film(kind, times_s, last_s=2.0))
        np.testing.assert_allclose(reading.times_s, times_s, atol=2e-3)
        assert reading.info.duration_s == pytest.approx(322.0, abs=2e-3)


def test_a_gif_that_ends_in_a_long_picture(tmp_path, picture):
    from PIL import Image

    pictures = [Image.fromarray(picture(number, 64, 128)) for number in range(4)]
    path = tmp_path / "end.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 3000])
    assert probe(path).duration_s == pytest.approx(3.3, abs=0.011)


def test_a_header_cannot_make_the_last_frame_endless(read, film):
    data = film("matroska", steady(50))
    at = data.index(b"\x44\x89\x88") + 3  # the number of the whole length, in milliseconds
    longer = data[:at] + np.array(1e9, ">f8").tobytes() + data[at + 8 :]
    assert read("mkv", longer).info.duration_s == pytest.approx(2.0, abs=2e-3)


def test_the_stream_ends_before_the_packet_does(tmp_path, film):
    data = film("matroska", steady(50), last_s=9.0)
    at = data.index(b"\x44\x89\x88") + 3
    shorter = data[:at] + np.array(4960.0, ">f8").tobytes() + data[at + 8 :]
    assert probe(written(tmp_path / "a.mkv", shorter)).duration_s == pytest.approx(4.96, abs=2e-3)


# --- the start of the clock --------------------------------------------------------------------------------


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", list(SUFFIX))
def test_sound_starts_before_the_picture(kind, b_frames, read, film, picture, read_number):
    data = film(kind, steady(50, 2.0), b_frames=b_frames, sound_s=[(0, 6)])
    reading = read(SUFFIX[kind], data)
    first_s = reading.info.first_frame_s
    assert first_s == pytest.approx(2.0, abs=0.025)  # Matroska counts from the end of AAC's 1024 first samples
    np.testing.assert_allclose(reading.times_s, np.array(steady(50, first_s)), atol=2e-3)
    assert reading.info.duration_s == pytest.approx(6.0, abs=0.03)
    assert reading.info.average_fps == pytest.approx(25.0, rel=1e-3)
    assert not reading.info.variable_rate
    with open_video(data) as video:
        clip = video.frames_at([0.0, 1.0, 2.5, 5.9])
        assert [read_number(frame) for frame in clip.frames] == [0, 0, round((2.5 - first_s) * 25), 49]
        assert read_number(video.sample_uniform(1, start_s=0.0, end_s=1.0).frames[0]) == 0
        part = video.sample_uniform(3, start_s=first_s, end_s=first_s + 1.0)
        assert [read_number(frame) for frame in part.frames] == [0, 12, 25]


@pytest.mark.parametrize("kind", list(SUFFIX))
def test_sound_that_starts_and_ends_with_the_picture_changes_nothing(kind, read, film):
    reading = read(SUFFIX[kind], film(kind, steady(50), sound_s=[(0, 1.92)]))
    assert reading.times_s[0] == pytest.approx(0.0, abs=1e-6)
    assert reading.info.duration_s == pytest.approx(2.0, abs=2e-3)


@pytest.mark.parametrize("kind", list(SUFFIX))
def test_sound_that_goes_on_for_long(kind, read, film, read_number):
    data = film(kind, steady(50), sound_s=[(0, 40)])
    reading = read(SUFFIX[kind], data)
    assert reading.info.duration_s == pytest.approx(40.0, abs=0.03)
    assert reading.info.last_frame_s == pytest.approx(1.96, abs=2e-3)
    with open_video(data) as video:
        assert read_number(video.frames_at([30.0]).frames[0]) == 49


def test_a_picture_alone_starts_its_own_clock(read, film):
    for kind, suffix in SUFFIX.items():
        reading = read(suffix, film(kind, steady(30, 5.0)))
        assert reading.times_s[0] == 0
        assert reading.info.first_frame_s == 0
        assert reading.info.duration_s == pytest.approx(1.2, abs=2e-3)


def test_info_says_when_the_first_frame_is_shown(tmp_path, film, capsys):
    from mmllm.commands.info import info

    path = written(tmp_path / "late.ts", film("mpegts", steady(50, 12.0), sound_s=[(10, 16)]))
    assert info((path,)) == 0
    output = capsys.readouterr().out
    assert "first frame at 2.000 s, after sound that starts at 0" in output
    assert "the file's own times start at 10.000 s" in output


# --- broken clocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize(
    "starts_s", [(0.0, 0.02), (0.0, 500.0), (500.0, 0.0), (0.0, 0.02, 700.0), (3.0, 3.0), (1.0, 2.8)]
)
@pytest.mark.parametrize("kind", ["mpegts", "flv"])
def test_joined_files_go_on(kind, starts_s, b_frames, read, film, access):
    parts = [film(kind, steady(50, start_s), b_frames=b_frames, first=50 * i) for i, start_s in enumerate(starts_s)]
    reading, count = read(SUFFIX[kind], *parts), 50 * len(parts)
    assert reading.numbers == list(range(count))
    np.testing.assert_allclose(reading.times_s, np.arange(count) / 25, atol=1e-3)
    assert reading.info.duration_s == pytest.approx(count / 25, abs=1e-3)
    assert reading.info.time_estimated
    assert len(reading.warnings) == 1
    assert "its clock falls back or jumps at frame 50" in reading.warnings[0]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mpg", "mpeg2video"), ("mkv", "libx264"), ("h264", "libx264"), ("m2v", "mpeg2video")]
)
def test_joined_files_of_other_kinds(suffix, codec, read, make_clip, picture):
    options = {"g": "12", "bf": "2"}
    parts = [
        make_clip(
            f"joined_{first}.{suffix}", codec=codec, frames=60, rate=25, options=options,
            pictures=lambda number, first=first: picture(first + number, 64, 128),
        ).read_bytes()
        for first in (0, 60)
    ]  # fmt: skip
    reading = read(suffix, *parts)
    assert reading.numbers == list(range(120))
    assert reading.info.duration_s == pytest.approx(4.8, abs=1e-3)
    assert len(reading.warnings) == (suffix in ("mpg", "mkv"))  # the others have no clock of their own


def test_a_join_in_the_middle_of_a_group_of_pictures(read, film):
    second = film("mpegts", steady(75), b_frames=True, first=75)
    reading = read("ts", film("mpegts", steady(75), b_frames=True), second[len(second) * 2 // 5 // 188 * 188 :])
    assert reading.numbers[:75] == list(range(75))
    assert reading.numbers[-27:] == list(range(123, 150))  # from the next key frame on, nothing is missing
    assert len(reading.warnings) == 1


@pytest.mark.parametrize("kind", ["mpegts", "flv"])
@pytest.mark.parametrize("b_frames", [False, True])
def test_a_clock_that_jumps_with_its_sound(kind, b_frames, read, film):
    data = film(kind, steady(50) + steady(50, 1002), b_frames=b_frames, sound_s=[(0, 2), (1002, 1004)])
    reading = read(SUFFIX[kind], data)
    assert reading.numbers == list(range(100))
    assert reading.info.duration_s == pytest.approx(4.0, abs=0.05)
    assert reading.info.time_estimated
    assert len(reading.warnings) == 1


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", list(SUFFIX))
def test_a_long_still_is_no_jump(kind, b_frames, read, film):
    times_s = steady(50) + steady(50, 32)
    reading = read(SUFFIX[kind], film(kind, times_s, b_frames=b_frames, sound_s=[(0, 34)]))
    np.testing.assert_allclose(reading.times_s - reading.times_s[0], times_s, atol=2e-3)
    assert reading.numbers == list(range(100))
    assert not reading.info.time_estimated
    assert reading.warnings == []


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_a_long_still_without_sound(kind, read, film):
    times_s = steady(50) + steady(50, 32)
    reading = read(SUFFIX[kind], film(kind, times_s, b_frames=True))
    np.testing.assert_allclose(reading.times_s, times_s, atol=2e-3)
    assert reading.warnings == []


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", list(SUFFIX))
def test_one_frame_a_minute_is_no_jump(kind, b_frames, read, film):
    times_s = [60.0 * number for number in range(30)]
    reading = read(SUFFIX[kind], film(kind, times_s, b_frames=b_frames, last_s=60.0))
    np.testing.assert_allclose(reading.times_s, times_s, atol=2e-3)
    assert reading.info.duration_s == pytest.approx(1800.0, abs=0.1)
    assert reading.numbers == list(range(30))
    assert reading.warnings == []


def test_slides_in_fragments(read, film):
    times_s = [60.0 * number for number in range(30)]
    reading = read("mp4", film("mp4", times_s, options=IN_FRAGMENTS, last_s=60.0))
    np.testing.assert_allclose(reading.times_s, times_s, atol=2e-3)
    assert reading.warnings == []


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", list(SUFFIX))
def test_one_repeated_time_moves_by_a_tick(kind, b_frames, read, film):
    reading = read(SUFFIX[kind], film(kind, steady(50), b_frames=b_frames, pts_s={30: 29 / 25}))
    expected = np.array(steady(50))
    expected[30] = expected[29]
    np.testing.assert_allclose(reading.times_s, expected, atol=1.5e-3)
    assert not reading.info.time_estimated
    assert reading.numbers == list(range(50))
    assert reading.warnings == []


@pytest.mark.parametrize("b_frames", [False, True])
@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_one_wrong_time_among_right_ones(kind, b_frames, read, film):
    reading = read(SUFFIX[kind], film(kind, steady(150), b_frames=b_frames, pts_s={60: 1000.0}))
    np.testing.assert_allclose(reading.times_s, steady(150), atol=2e-3)
    assert reading.numbers == list(range(150))
    assert reading.info.time_estimated
    assert len(reading.warnings) == 1


@pytest.mark.parametrize("b_frames", [False, True])
def test_the_clock_of_a_broadcast_begins_again(b_frames, read, film):
    for before_s in (2.0, 100.0):
        times_s = steady(100, WRAP_S - before_s)
        reading = read("ts", film("mpegts", times_s, b_frames=b_frames))
        np.testing.assert_allclose(reading.times_s, steady(100), atol=1e-3)
        assert reading.info.duration_s == pytest.approx(4.0, abs=1e-3)
        assert not reading.info.time_estimated
        assert reading.numbers == list(range(100))
    data = film("mpegts", steady(100, WRAP_S - 2), sound_s=[(WRAP_S - 2.5, WRAP_S + 3)])
    reading = read("ts", data)
    assert reading.info.first_frame_s == pytest.approx(0.5, abs=1e-3)
    assert reading.info.duration_s == pytest.approx(5.5, abs=0.02)


def test_other_backends_refuse_a_broken_clock(tmp_path, film):
    pytest.importorskip("decord")
    path = written(tmp_path / "a.ts", *(film("mpegts", steady(50), first=first) for first in (0, 50)))
    with pytest.warns(ClockBroken), pytest.raises(VideoOpenError, match=r"sorts frames by it; use backend='pyav'"):
        open_video(path, backend="decord")


# --- the shared cases --------------------------------------------------------------------------------------


def number_on_top(frame: np.ndarray) -> int:
    """The number in ten black and white blocks along the upper edge, lowest bit left."""
    width = frame.shape[1]
    row = frame[10:20].mean(axis=(0, 2))
    centres = [int((0.1 + 0.08 * (bit + 0.5)) * width) for bit in range(10)]
    return sum(int(row[centre] > 128) << bit for bit, centre in enumerate(centres))


@pytest.fixture
def case():
    if not CASES.is_dir():
        pytest.skip("no ../shared/data/cases beside the repository")
    return lambda name: CASES / name


def test_case_still_end(case):
    with open_video(case("still_end.mp4")) as video:
        assert video.info.duration_s == pytest.approx(9.633, abs=1e-3)
        clip = video.frames_at([5.0, 9.6])
        assert clip.metadata["indices"] == [19, 19]
        assert number_on_top(clip.frames[0]) == 19


def test_case_joined_clock_restarts(case, access):
    with pytest.warns(ClockBroken) as records:
        video = open_video(case("joined_clock_restarts.ts"))
    assert len(records) == 1
    with video:
        assert video.info.time_estimated
        assert video.info.duration_s == pytest.approx(6.0, abs=0.03)
        everything = [frame for clip in video.iterate(32) for frame in clip.frames]
        assert [number_on_top(frame) for frame in everything] == list(range(150))
        order = np.random.default_rng(0).permutation(150)
        assert [number_on_top(frame) for frame in video.frames_by_index(order).frames] == order.tolist()


def test_case_picture_starts_late(case):
    with open_video(case("picture_starts_late.mp4")) as video:
        assert video.times_s[0] == video.info.first_frame_s == 2.0
        assert video.info.duration_s == pytest.approx(6.0, abs=1e-3)
        clip = video.frames_at([0.0, 2.0, 3.0, 6.0])
        assert [number_on_top(frame) for frame in clip.frames] == [0, 0, 25, 74]


def test_case_lecture(case):
    with open_video(case("lecture_4h.mp4")) as video:
        assert (video.info.duration_s, len(video)) == (14_400, 240)
        np.testing.assert_allclose(np.diff(video.times_s), 60.0)
        assert not video.info.time_estimated
