"""Cameras: an address of RTSP over the loopback interface, and a device of FFmpeg."""

import json
from itertools import pairwise

import numpy as np
import pytest

from mmllm.cli import main
from mmllm.errors import InputError
from mmllm.video.errors import VideoOpenError
from mmllm.video.limits import VideoLimits
from mmllm.video.live.clock import StreamClock, Ticks
from mmllm.video.live.decoding import live_frames, open_by_ffmpeg
from mmllm.video.live.sources import follow
from tests.support.rtsp import camera, rtp_packets
from tests.support.streams import grey_frames, numbers_of

FPS = 5


def followed(address, **options):
    return list(follow(address, FPS, **{"idle_s": 1.0, "allow_address": True, **options}))


def test_all_frames_of_a_camera_come_with_their_times():
    with camera(rtp_packets(grey_frames(30), FPS)) as address:
        frames = followed(address)
    assert numbers_of([frame.pixels for frame in frames]) == list(range(30))  # those before the first are not lost
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(30) / FPS, abs=2e-3)
    assert not any(frame.gap for frame in frames)


def test_after_an_interruption_the_camera_is_called_again():
    first, second = grey_frames(40)[:15], grey_frames(40)[15:]
    with camera(rtp_packets(first, FPS), rtp_packets(second, FPS)) as address:
        frames = followed(address, gap_s=0.5)
    assert numbers_of([frame.pixels for frame in frames]) == list(range(40))
    gaps = [frame.gap for frame in frames]
    assert [number for number, gap in enumerate(gaps) if gap] == [15]
    assert not gaps[15].measured  # the clock began anew: the wall clock says how long it was away
    assert gaps[15].end_s - gaps[15].start_s >= 1.0
    assert all(b.time_s > a.time_s for a, b in pairwise(frames))


def test_a_camera_is_watched_by_the_command(capsys):
    with camera(rtp_packets(grey_frames(40), FPS)) as address, pytest.raises(SystemExit) as ended:
        main(["watch", address, "--allow-address", "--question", "When does it get dark?", "--idle", "1"])
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (ended.value.code, end["kind"], end["why"]) == (0, "end", "the stream is over")
    assert (end["frames"], end["seconds"]) == (16, pytest.approx(7.6, abs=0.2))


def test_a_camera_that_has_no_stream_is_refused():
    with camera() as address, pytest.raises(VideoOpenError, match=r"rtsp://127.0.0.1:\d+/live: cannot be opened"):
        followed(address)


def test_nobody_is_called_without_leave():
    with pytest.raises(InputError, match="--allow-address"):
        followed("rtsp://127.0.0.1:1/live", allow_address=False)


def test_frames_of_a_device_come_as_they_are_taken():
    """FFmpeg's own device for test pictures, through what opens a camera: there is no camera here."""
    container = open_by_ffmpeg("testsrc=size=64x48:rate=10:duration=2", "lavfi", {}, 5.0)
    frames = list(live_frames(container, "device", StreamClock(), Ticks(5), VideoLimits(), live=True))
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(10) / 5, abs=2e-3)
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
