"""Uploads are read in a child process: the same clips as without it, and no harm from files that crash or fill it."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmllm.app.confined_reading import ConfinedReading
from mmllm.errors import InputError
from mmllm.preprocessing.frames import FrameTransform
from mmllm.preprocessing.video_options import at_rate
from mmllm.preprocessing.whole_frames import WholeFrames
from mmllm.video.errors import LimitExceeded, NoVideoStream, VideoDecodeError, VideoError, VideoOpenError, VideoTimeout
from mmllm.video.limits import UPLOAD_LIMITS
from mmllm.video.opening import SoundOptions, open_video

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="read in the same process there")
CASES = Path(__file__).parents[1] / "data" / "cases"
TRANSFORM = FrameTransform(size=64)


@pytest.fixture(scope="module")
def reading():
    reading = ConfinedReading()
    yield reading
    reading.close()


def test_the_clip_is_the_same_as_without_a_child(reading, short_clip):
    clip = reading.read(short_clip, 7, TRANSFORM, UPLOAD_LIMITS)
    with open_video(short_clip) as video:
        expected = video.sample_uniform(7, transform=TRANSFORM.video_frame)
    assert np.array_equal(clip.frames, expected.frames)
    assert np.array_equal(clip.times_s, expected.times_s)
    assert clip.duration_s == expected.duration_s
    assert clip.metadata == {**expected.metadata, "codec": "h264"}


def test_the_sound_comes_with_the_clip(reading, heard_clip, short_clip):
    clip = reading.read(heard_clip, 5, TRANSFORM, UPLOAD_LIMITS, sound=SoundOptions())
    with open_video(heard_clip) as video:
        sound, expected = video.sound(), video.sample_uniform(5, transform=TRANSFORM.video_frame)
    assert np.array_equal(clip.waveform, sound.samples)
    assert np.array_equal(clip.frames, expected.frames)
    assert reading.read(heard_clip, 5, TRANSFORM, UPLOAD_LIMITS).waveform is None
    assert reading.read(short_clip, 5, TRANSFORM, UPLOAD_LIMITS, sound=SoundOptions()).waveform is None


@pytest.mark.parametrize(
    ("name", "error"), [("text.mp4", VideoOpenError), ("sound.mp4", NoVideoStream), ("huge.mp4", VideoError)]
)
def test_errors_keep_their_kind(reading, bad_videos, name, error):
    with pytest.raises(error, match=name):
        reading.read(bad_videos[name], 7, TRANSFORM, UPLOAD_LIMITS)


def test_a_file_above_the_limits_is_refused(reading, bad_videos):
    with pytest.raises(LimitExceeded, match="90 s long"):
        reading.read(bad_videos["long.mp4"], 7, TRANSFORM, replace(UPLOAD_LIMITS, seconds=60.0))


def stub(body):
    """A command that says it is ready, reads a request and then does something else."""
    start = 'import os, signal, sys, time\nsys.stdout.write(\'{"ready": true, "bytes": 0}\\n\'); sys.stdout.flush()\n'
    return (sys.executable, "-c", f"{start}sys.stdin.readline()\n{body}")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", VideoDecodeError),
        ("time.sleep(60)", VideoTimeout),
        ("os.write(1, b'no JSON\\n'); time.sleep(60)", VideoDecodeError),
        ('os.write(1, b\'{"shape": [1, 2, 2, 3], "bytes": 5}\\n12345\'); time.sleep(60)', VideoDecodeError),
        ('os.write(1, b\'{"error": "SystemExit", "message": "x"}\\n\'); time.sleep(60)', VideoDecodeError),
        ('os.write(1, b\'{"error": "MemoryError"}\\n\'); time.sleep(60)', LimitExceeded),
    ],
)
def test_a_child_that_fails_harms_nobody(tmp_path, body, error):
    reading = ConfinedReading(stub(body))
    with pytest.raises(error, match=r"a\.mp4"):
        reading.read(tmp_path / "a.mp4", 7, TRANSFORM, replace(UPLOAD_LIMITS, child_s=1.0))
    reading.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such limit")
def test_memory_is_limited_and_the_next_file_is_read(short_clip):
    reading = ConfinedReading((sys.executable, "-m", "mmllm.app._reading_worker", str(1 << 20)))
    with pytest.raises(VideoError, match=short_clip.name):
        reading.read(short_clip, 3, TRANSFORM, UPLOAD_LIMITS)
    reading.command = ConfinedReading().command
    assert len(reading.read(short_clip, 3, TRANSFORM, UPLOAD_LIMITS)) == 3
    reading.close()


def test_the_child_ends_when_the_reading_is_closed(short_clip):
    reading = ConfinedReading()
    reading.read(short_clip, 3, TRANSFORM, UPLOAD_LIMITS)
    pid = reading._child.pid
    os.kill(pid, 0)
    reading.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_reading_is_interrupted_from_another_thread(tmp_path, short_clip):
    reading = ConfinedReading(stub("time.sleep(60)"))
    threading.Timer(1.0, reading.interrupt).start()
    began_s = time.monotonic()
    with pytest.raises(VideoDecodeError, match="crashes"):
        reading.read(tmp_path / "a.mp4", 7, TRANSFORM, UPLOAD_LIMITS)
    assert time.monotonic() - began_s < 30
    reading.close()
    reading.interrupt()


def test_a_part_and_a_rate_are_those_without_a_child(reading, short_clip):
    with open_video(short_clip) as video:
        part = video.sample_uniform(5, start_s=2.0, end_s=6.0, transform=TRANSFORM.video_frame)
        rated = at_rate(video, 1.5, 1.0, None, TRANSFORM.video_frame)
    clip = reading.read(short_clip, 5, TRANSFORM, UPLOAD_LIMITS, start_s=2.0, end_s=6.0)
    assert np.array_equal(clip.frames, part.frames)
    assert np.array_equal(clip.times_s, part.times_s)
    clip = reading.read(short_clip, 50, TRANSFORM, UPLOAD_LIMITS, fps=1.5, start_s=1.0)
    assert np.array_equal(clip.frames, rated.frames)
    assert np.array_equal(clip.times_s, rated.times_s)
    with pytest.raises(InputError, match="at most 5"):
        reading.read(short_clip, 5, TRANSFORM, UPLOAD_LIMITS, fps=10)
    with pytest.raises(InputError, match="no part"):
        reading.read(short_clip, 5, TRANSFORM, UPLOAD_LIMITS, start_s=20.0)


def test_a_picture_is_read_in_the_child(reading, tmp_path, short_clip, bad_videos):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(reading.picture(tmp_path / "a.png", UPLOAD_LIMITS), pixels)
    with pytest.raises(LimitExceeded):
        reading.picture(tmp_path / "a.png", replace(UPLOAD_LIMITS, pixels=60))
    for path in (short_clip, bad_videos["text.mp4"], bad_videos["empty.mp4"], bad_videos["huge.mp4"]):
        with pytest.raises(InputError, match=path.name):
            reading.picture(path, UPLOAD_LIMITS)


def test_thirty_million_samples_in_740_bytes_do_not_reach_the_demo(reading):
    """The table of samples asks for more than a gigabyte; whatever the child does, this process goes on."""
    with pytest.raises(VideoError):
        reading.read(CASES / "fault_samples_30m_in_740_bytes.mp4", 3, TRANSFORM, UPLOAD_LIMITS)


class Counting:
    """A sink that takes videos of more than `whole` frames."""

    def __init__(self, whole=0):
        self.whole, self.frames = whole, []

    def takes(self, count):
        self.frames.clear()
        return count > self.whole

    def put(self, frame):
        self.frames.append(frame)
        return False


def test_a_sink_takes_the_frames_of_a_long_video_one_by_one(reading, short_clip):
    sink, whole = Counting(), reading.read(short_clip, 80, TRANSFORM, UPLOAD_LIMITS)
    clip = reading.read(short_clip, 80, TRANSFORM, UPLOAD_LIMITS, sink)
    assert clip.frames.shape == (80, 0, 0, 3)
    assert np.array_equal(np.stack(sink.frames), whole.frames)
    assert np.array_equal(clip.times_s, whole.times_s)
    unwanted = Counting(whole=80)
    assert np.array_equal(reading.read(short_clip, 80, TRANSFORM, UPLOAD_LIMITS, unwanted).frames, whole.frames)
    assert not unwanted.frames


def test_the_next_video_is_read_after_a_sink_has_failed(reading, short_clip):
    class Failing(Counting):
        def put(self, frame):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reading.read(short_clip, 20, TRANSFORM, UPLOAD_LIMITS, Failing())
    assert len(reading.read(short_clip, 20, TRANSFORM, UPLOAD_LIMITS)) == 20


@pytest.mark.parametrize(
    "frames",
    [
        '{"count": 8}\n',  # more than asked for
        '{"count": 1}\n{"frame": [2, 2, 3], "bytes": 12}\n123456789012',  # of another size
        '{"frame": [64, 64, 3], "bytes": 0}\n',  # before the number of frames
        '{"count": 2}\n{"times_s": [0, 1]}\n',  # too few
    ],
)
def test_frames_that_are_not_those_asked_for_are_refused(tmp_path, frames):
    reading = ConfinedReading(stub(f"os.write(1, {frames.encode()!r}); time.sleep(60)"))
    with pytest.raises(VideoDecodeError, match="sent no clip"):
        reading.read(tmp_path / "a.mp4", 7, TRANSFORM, replace(UPLOAD_LIMITS, child_s=5.0))
    reading.close()


def test_frames_come_as_they_are_decoded(reading, short_clip):
    clip = reading.read(short_clip, 7, WholeFrames(), UPLOAD_LIMITS)
    with open_video(short_clip) as video:
        expected = video.sample_uniform(7)
    assert np.array_equal(clip.frames, expected.frames)
    assert reading.read(short_clip, 7, WholeFrames(longest_edge=20), UPLOAD_LIMITS).frames.shape[1:] == (20, 20, 3)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ('{"count": 1}\n{"frame": [2, 2, 4], "bytes": 16}\n1234567890123456', VideoDecodeError),
        ('{"count": 1}\n{"frame": [0, 2, 3], "bytes": 0}\n', VideoDecodeError),
        ('{"count": 1}\n{"frame": "all", "bytes": 0}\n', VideoDecodeError),
        ('{"frame": [2, 2, 3], "bytes": 12}\n123456789012', VideoDecodeError),  # before the number of frames
        (
            '{"count": 2}\n{"frame": [1, 1, 3], "bytes": 3}\n123{"frame": [2, 1, 3], "bytes": 6}\n123456',
            VideoDecodeError,
        ),
        ('{"count": 7}\n{"frame": [99999, 99999, 3], "bytes": 3}\n123', LimitExceeded),
    ],
)
def test_whole_frames_that_are_none_are_refused(tmp_path, frames, error):
    reading = ConfinedReading(stub(f"os.write(1, {frames.encode()!r}); time.sleep(60)"))
    with pytest.raises(error):
        reading.read(tmp_path / "a.mp4", 7, WholeFrames(), replace(UPLOAD_LIMITS, child_s=5.0))
    reading.close()
