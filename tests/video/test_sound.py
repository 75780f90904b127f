"""Sound of video files: where it belongs in time, gaps, tracks, parts of a video, damage, claims."""

import io
import warnings
from fractions import Fraction

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.video.errors import LimitExceeded, SoundDamaged, VideoDecodeError
from mmllm.video.limits import VideoLimits
from mmllm.video.opening import SoundOptions, open_video, sample_uniform

av = pytest.importorskip("av")

RATE = 44_100
CLICK = 0.8 * np.sin(np.arange(300) * 0.5)


def clicks(times_s, length_s, rate=RATE):
    """float64, S: silence with a click at each of these times."""
    samples = np.zeros(int(length_s * rate))
    for time_s in times_s:
        place = round(time_s * rate)
        samples[place : place + len(CLICK)] = CLICK
    return samples


def write(
    path,
    tracks,
    *,
    codec="aac",
    rate=RATE,
    seconds=4,
    picture_s=0.0,
    sound_s=0.0,
    gap=None,
    layout="stereo",
    container_format=None,
):
    """A file of ten pictures a second and tracks of sound.

    Args:
        path: a path, or a binary file.
        tracks: for each track samples (S) for all channels, or (C S).
        codec, rate, layout: of the tracks.
        seconds: of pictures.
        picture_s, sound_s: when the first of both starts.
        gap: (at, length) in seconds; from `at` on sound is stored so much later.
        container_format: for a binary file.
    """
    with av.open(path if hasattr(path, "write") else str(path), "w", format=container_format) as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.height = video.width = 64
        video.pix_fmt = "yuv420p"
        streams = [container.add_stream(codec, rate=rate, layout=layout) for _ in tracks]
        for number in range(seconds * 10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 5 % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number + round(picture_s * 10), Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for stream, samples in zip(streams, tracks, strict=True):
            channels = np.stack([samples] * (1 if layout == "mono" else 2)) if samples.ndim == 1 else samples
            step = stream.codec_context.frame_size or 1024
            for place in range(0, channels.shape[1] - step + 1, step):
                part = np.ascontiguousarray(channels[:, place : place + step], dtype=np.float32)
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                later = gap is not None and place / rate >= gap[0]
                frame.pts = place + round((sound_s + (gap[1] if later else 0)) * rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def click_times(sound):
    """When clicks begin, on the clock of the frames."""
    loud = np.flatnonzero(np.abs(sound.samples) > 0.3) / 16_000 + sound.start_s
    return [float(time_s) for i, time_s in enumerate(loud) if i == 0 or time_s - loud[i - 1] > 0.2]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le"), ("a.mkv", "flac"), ("a.avi", "pcm_s16le")],
)
def test_sound_is_heard_at_its_time(tmp_path, name, codec):
    rate = 48_000 if codec == "libopus" else RATE
    file = write(tmp_path / name, [clicks([0.5, 2.0], 3.0, rate)], codec=codec, rate=rate)
    with open_video(file) as video:
        sound = video.sound()
    assert sound.samples.dtype == np.float32
    assert sound.start_s == 0
    assert np.isfinite(sound.samples).all()
    assert click_times(sound) == pytest.approx([0.5, 2.0], abs=0.004)
    assert sound.duration_s == pytest.approx(3.0, abs=0.11)  # the last frame of the codec is not full


def test_sound_may_be_later_earlier_longer_and_shorter_than_the_picture(tmp_path):
    samples = clicks([0.5, 2.0], 3.0)
    with open_video(write(tmp_path / "late.mkv", [samples], sound_s=1.5)) as video:
        assert video.times_s[0] == 0
        assert click_times(video.sound()) == pytest.approx([2.0, 3.5], abs=0.004)
    with open_video(write(tmp_path / "early.mkv", [samples], picture_s=1.5)) as video:
        assert video.times_s[0] == pytest.approx(1.5, abs=0.02)
        assert click_times(video.sound()) == pytest.approx([0.5, 2.0], abs=0.004)
    with open_video(write(tmp_path / "long.mkv", [clicks([0.5, 5.5], 6.0)], seconds=2)) as video:
        assert video.info.duration_s == pytest.approx(6.0, abs=0.05)
        assert click_times(video.sound()) == pytest.approx([0.5, 5.5], abs=0.004)


def test_a_gap_of_the_timestamps_is_silence(tmp_path):
    file = write(tmp_path / "gap.mkv", [clicks([0.5, 1.5], 2.5)], gap=(1.0, 2.0), codec="flac", seconds=5)
    with open_video(file) as video:
        sound = video.sound()
    assert click_times(sound) == pytest.approx([0.5, 3.5], abs=0.03)
    assert not sound.samples[round(1.3 * 16_000) : round(2.8 * 16_000)].any()


def test_a_file_without_sound_is_read_as_before(tmp_path, make_clip, b_frames):
    with open_video(b_frames) as video:
        assert video.info.audio == ()
        assert video.sound() is None
    with open_video(np.zeros((4, 8, 8, 3), np.uint8), fps=2) as video:
        assert video.sound() is None


def test_the_default_track_is_heard_unless_another_is_named(tmp_path):
    file = write(tmp_path / "two.mkv", [clicks([0.5], 2.0), clicks([1.0], 2.0)])
    with open_video(file) as video:
        assert len(video.info.audio) == 2
        assert [name.endswith("(default)") for name in video.info.audio].count(True) == 1
        assert click_times(video.sound(SoundOptions(track=1))) == pytest.approx([0.5], abs=0.004)
        assert click_times(video.sound(SoundOptions(track=2))) == pytest.approx([1.0], abs=0.004)
        with pytest.raises(InputError, match="stream 0 is not an audio stream; streams: 0 video h264 64x64; 1 audio"):
            video.sound(SoundOptions(track=0))


def test_channels_are_averaged_or_the_first_is_heard(tmp_path):
    left, right = clicks([0.5], 2.0), clicks([1.0], 2.0)
    file = write(tmp_path / "stereo.mov", [np.stack([left, right])], codec="pcm_s16le")
    with open_video(file) as video:
        first, mean = video.sound(SoundOptions(channel="first")), video.sound()
    assert click_times(first) == pytest.approx([0.5], abs=0.004)
    assert click_times(mean) == pytest.approx([0.5, 1.0], abs=0.004)
    assert np.abs(mean.samples).max() == pytest.approx(0.4, abs=0.02)


def test_a_part_of_a_video_has_the_sound_of_the_part(tmp_path):
    file = write(tmp_path / "long.mp4", [clicks([0.5, 41.0, 44.0], 46.0)], seconds=46)
    with open_video(file) as video:
        part = video.sound(start_s=40.0, end_s=43.0)
        assert part.start_s == 40.0
        assert part.duration_s == pytest.approx(3.0, abs=0.002)
        assert click_times(part) == pytest.approx([41.0], abs=0.004)
        whole = video.sound()
        expected = whole.samples[40 * 16_000 : 43 * 16_000]
        assert np.abs(part.samples - expected[: len(part.samples)]).mean() < 1e-3  # it begins between two samples
        assert video.sound(start_s=video.info.duration_s) is None
        with pytest.raises(InputError, match="no part from 50 to None s"):
            video.sound(start_s=50)
        with pytest.raises(InputError, match="no part from 3 to 2 s"):
            video.sound(start_s=3, end_s=2)


def test_bytes_and_open_files_keep_their_place_for_the_pictures(tmp_path):
    file = write(tmp_path / "a.mp4", [clicks([0.5], 3.0)])
    for source in (file.read_bytes(), io.BytesIO(file.read_bytes())):
        with open_video(source) as video:
            before = video.sample_uniform(4).frames
            assert click_times(video.sound()) == pytest.approx([0.5], abs=0.004)
            assert np.array_equal(video.sample_uniform(4).frames, before)


def test_damaged_sound_is_heard_as_far_as_it_goes(tmp_path):
    file = write(tmp_path / "a.mkv", [clicks([0.5, 2.5], 4.0)], codec="aac", seconds=4)
    data = bytearray(file.read_bytes())
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.size and 1.0 < float(p.pts * p.time_base) < 1.6]
    for packet in packets:
        place = data.find(packet)
        assert place > 0
        data[place : place + len(packet)] = b"\xff" * len(packet)
    with open_video(bytes(data)) as video:
        with pytest.warns(SoundDamaged, match=r"its sound \(aac 44100 Hz stereo\) is damaged: \d+ of \d+ packets"):
            sound = video.sound()
        assert click_times(sound) == pytest.approx([0.5, 2.5], abs=0.05)
    with open_video(bytes(data), strict=True) as video, pytest.raises(VideoDecodeError, match="sound, packet"):
        video.sound()


def test_samples_that_are_no_numbers_are_silence(tmp_path):
    samples = clicks([0.5], 2.0)
    samples[20_000:20_050] = np.nan
    samples[30_000:30_050] = np.inf
    samples[40_000] = 1e30
    file = write(tmp_path / "odd.mkv", [samples], codec="pcm_f32le", rate=16_000, layout="mono")
    with open_video(file) as video:
        sound = video.sound()
    assert np.isfinite(sound.samples).all()
    assert np.abs(sound.samples).max() <= 8


def test_limits_hold_for_sound(tmp_path):
    file = write(tmp_path / "a.mp4", [clicks([0.5], 4.0)])
    with open_video(file, limits=VideoLimits(returned_bytes=100_000)) as video:
        with pytest.raises(LimitExceeded, match="of sound: look at a part of it"):
            video.sound()
        assert video.sound(end_s=1.0).duration_s == pytest.approx(1.0, abs=0.002)


def test_a_claim_of_hours_allocates_nothing(tmp_path):
    """The timestamps jump by hours: the part is as long as the pictures, and silence needs no memory."""
    import tracemalloc

    file = write(tmp_path / "jump.mkv", [clicks([0.5], 2.0)], gap=(1.0, 3600.0 * 5), codec="flac", seconds=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_video(file) as video:
            tracemalloc.start()
            sound = video.sound(end_s=10.0)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert click_times(sound) == pytest.approx([0.5], abs=0.004)
    assert peak < 20 << 20


def test_sample_uniform_and_the_clip_are_as_before(tmp_path):
    file = write(tmp_path / "a.mp4", [clicks([0.5], 3.0)])
    clip = sample_uniform(file, 5)
    assert clip.waveform is None
