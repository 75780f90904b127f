"""The 69 real clips: first, middle and last frame are those of a plain decode of the whole file, and so are times."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from mmllm.video.opening import VideoError, open_video

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "video_reference.json").read_text())
ERRORS = {
    "androidx__bbb_1ch_48kHz_q10_opus.webm": "NoVideoStream",
    "androidx__sample_audio_only.mp4": "NoVideoStream",
    "torchcodec__nasa_13013.mp4.audio.mp3": "NoVideoStream",
    "mp4parse__chunk_out_of_range.mp4": "VideoOpenError",
    "mp4parse__test_case_1185230.mp4": "NoFrames",
}
OBLONG = "androidx__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4"
FIRST_FRAME_S = {
    "androidx__edit_list_positive_shift.mp4": 1.0,
    "androidx__sample_fragmented.mp4": 0.0667,
    "gradio__video_sample.webm": 0.007,
}
"""When the first frame is shown, in files whose sound starts before the picture; 0 in all others."""
LONG = ("androidx__long_1080p_videoonly_lowbitrate.mp4", "androidx__long_180p_av1.mp4")
OLDER_PYAV = int(av.__version__.split(".")[0]) < 17


def plain_decode():
    """The script that made the reference, which uses nothing of mmllm."""
    spec = importlib.util.spec_from_file_location("reference", Path(__file__).parent / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_of_all_clips(shared_videos):
    assert sorted(REFERENCE) == sorted(path.name for path in shared_videos.iterdir() if path.suffix != ".md")
    assert sorted(name for name, reference in REFERENCE.items() if reference is None) == sorted(ERRORS)
    assert len(REFERENCE) == 69


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_first_middle_and_last_frame(name, shared_videos):
    if OLDER_PYAV and "10bits" in name:
        pytest.skip("with PyAV before 17, FFmpeg converts ten bits with errors of up to four levels")
    reference = REFERENCE[name]
    if reference is None:
        with pytest.raises(VideoError) as raised:
            open_video(shared_videos / name)
        assert type(raised.value).__name__ == ERRORS[name]
        return
    with open_video(shared_videos / name) as video:
        clip = video.frames_by_index([entry["index"] for entry in reference["pictures"]])
        assert video.info.num_frames == reference["frames"]
        cells = plain_decode().cells
        first_s = video.info.first_frame_s
        assert first_s == pytest.approx(FIRST_FRAME_S.get(name, 0.0), abs=1e-3)
        for frame, time_s, entry in zip(clip.frames, clip.times_s, reference["pictures"], strict=True):
            resized = (video.info.height, video.info.width) != (entry["height"], entry["width"])
            np.testing.assert_allclose(cells(frame), entry["cells"], atol=3 if resized else 1.5)
            if entry["time_s"] is not None:
                assert time_s - first_s == pytest.approx(entry["time_s"], abs=1e-3)  # the reference counts from it
            else:
                assert video.info.time_estimated


ALL_IN_ONE = """
import json, sys, time, warnings
from pathlib import Path
import av
from mmllm.video.opening import VideoError, open_video
warnings.simplefilter("ignore")

def memory_kb(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(kind))

before_kb, begun_s = memory_kb("VmRSS"), time.process_time()
good = bad = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix == ".md":
        continue
    try:
        with open_video(path) as video:
            good += len(video.sample_uniform(3)) == 3
    except VideoError:
        bad += 1
more_kb = memory_kb("VmHWM") - before_kb
print(json.dumps({"good": good, "bad": bad, "cpu_s": time.process_time() - begun_s, "more_mib": more_kb / 1024}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_all_clips_in_one_process_within_bounds(shared_videos):
    process = subprocess.run(
        [sys.executable, "-c", ALL_IN_ONE, str(shared_videos)],
        capture_output=True, text=True, check=True, env={**os.environ},
    )  # fmt: skip
    result = json.loads(process.stdout)
    assert (result["good"], result["bad"]) == (64, 5)
    assert result["more_mib"] <= 600, result
    assert result["cpu_s"] <= 60, result


@pytest.mark.skipif(OLDER_PYAV, reason="before version 17, PyAV itself reads the matrix of colours wrongly")
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, entry in REFERENCE.items() if entry and name not in LONG))
def test_frames_are_bit_equal_to_a_plain_decode(name, shared_videos):
    reference, path = plain_decode(), shared_videos / name
    count = REFERENCE[name]["frames"]
    indices = np.unique(np.append(np.random.default_rng(0).integers(0, count, 6), [0, count - 1]))
    with open_video(path) as video:
        clip = video.frames_by_index(indices)
    frames = dict(zip(indices.tolist(), clip.frames, strict=True))
    for number, frame in enumerate(reference.decoded(path)):
        if number in frames:
            expected = reference.upright(frame)
            if expected.shape == frames[number].shape:  # all but clips that change their size, or have oblong pixels
                np.testing.assert_array_equal(frames[number], expected)
            else:
                assert name in ("vpf__test_res_change.h264", OBLONG)
