"""Many files, many times: mutated copies end in frames or typed errors, and memory stays where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from versions import needs_pyav_17_1

from mmllm.video import errors as video_errors
from mmllm.video.opening import VideoLimits, open_video
from mmllm.video.quarantine import Quarantine, QuarantineConfig

TYPED = {name for name in vars(video_errors) if name.startswith(("Video", "No", "Limit"))}
SMALL_REAL = (
    "androidx__bbb_176x144_128kbps_15fps_h263.3gp",
    "androidx__sample_sef_slow_motion.mp4",
    "decord__video_90.mov",
    "gradio__bad_video_sample.mp4",
    "mp4parse__minimal.mp4",
    "mp4parse__no_timescale.mp4",
    "torchcodec__av1_video.mkv",
    "torchcodec__h265_10bits.mp4",
)
MADE = {
    "a.mp4": {"codec": "libx264", "options": {"bf": "3", "g": "12"}},
    "a.mkv": {"codec": "libx264", "options": {"bf": "3", "g": "12"}},
    "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "a.ts": {"codec": "libx264", "options": {"bf": "3", "g": "12"}},
    "a.flv": {"codec": "libx264"},
    "a.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "a.mpg": {"codec": "mpeg2video"},
    "a.h264": {"codec": "libx264", "container_format": "h264"},
    "a.gif": {"codec": "gif", "pixel_format": "rgb8"},
}


def mutated(data: bytes, seed: int) -> bytes:
    """A copy with bytes flipped, blocks zeroed or the end cut off."""
    random, copy = np.random.default_rng(seed), np.frombuffer(data, dtype=np.uint8).copy()
    kind = seed % 5
    if kind == 0:
        return copy[: random.integers(1, len(copy))].tobytes()
    if kind == 1:  # the header, mostly
        places = random.integers(0, min(len(copy), 600), random.integers(1, 12))
    elif kind == 2:
        places = random.integers(max(0, len(copy) - 2000), len(copy), random.integers(1, 30))
    else:
        places = random.integers(0, len(copy), random.integers(1, 200))
    if kind == 4:
        start = random.integers(0, len(copy))
        copy[start : start + random.integers(1, 4000)] = random.integers(0, 2) * 255
    copy[places] = random.integers(0, 256, len(places))
    return copy.tobytes()


def read_mutated(item: tuple[str, int]) -> int:
    """Everything that one may do with a file; runs in a worker process."""
    path, seed = item
    with open(path, "rb") as file:
        data = mutated(file.read(), seed)
    warnings.simplefilter("ignore")
    with open_video(data, limits=VideoLimits(pixels=4_000_000, frames=20_000, cpu_s=25.0)) as video:
        clip = video.sample_uniform(4, size=(16, 16))
        assert clip.frames.shape == (4, 16, 16, 3)
        assert 0 <= clip.times_s[0] <= clip.times_s[-1] <= video.info.duration_s
        return sum(len(part) for part in video.iterate(64, size=(16, 16)))


@needs_pyav_17_1
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.long)])
def test_mutated_copies_neither_hang_nor_crash(count, make_clip, caplog):
    caplog.set_level("ERROR")
    sources = [str(make_clip(name, frames=24, **fields)) for name, fields in MADE.items()]
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
    if shared.is_dir():
        sources += [str(shared / name) for name in SMALL_REAL]
    items = [(sources[seed % len(sources)], seed) for seed in range(count)]
    reading = Quarantine(read_mutated, QuarantineConfig(workers=2, deadline_s=240.0))
    good = dict(reading.results(items))
    errors = Counter(failure.error for failure in reading.failures)
    assert set(errors) <= TYPED, [failure for failure in reading.failures if failure.error not in TYPED][:3]
    assert len(good) + len(reading.failures) == count
    assert len(good) > 0.4 * count
    assert errors["VideoTimeout"] == 0


OPEN_AND_CLOSE = """
import json, sys, warnings
from mmllm.video.opening import VideoError, open_video

def resident_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

good, bad, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
marks = []
for number in range(count):
    with open_video(good) as video:
        video.frames_by_index([number % len(video)])
    try:
        open_video(bad)
    except VideoError:
        pass
    if number in (count // 4, count - 1):
        marks.append(resident_kb())
print(json.dumps(marks))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_over_opens_and_closes(make_clip, tmp_path):
    path = make_clip("tiny.mp4", frames=4, size=(32, 64))
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(path.read_bytes()[:700])
    process = subprocess.run(
        [sys.executable, "-c", OPEN_AND_CLOSE, str(path), str(bad), os.environ.get("MMLLM_TEST_OPENS", "1000")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    early_kb, late_kb = json.loads(process.stdout)
    assert late_kb - early_kb < 4096
