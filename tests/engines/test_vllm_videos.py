"""Our reader in vLLM gives the very frames and times that a model sees of the same file here."""

from fractions import Fraction

import av
import numpy as np
import pytest

from mmllm.engines.vllm_videos import VideoFrames
from mmllm.errors import InputError
from mmllm.preprocessing.media import MediaReading
from mmllm.video.errors import VideoError


@pytest.mark.parametrize("rule", [None, "slow-fast:fps=2", "even:fps=1"])
def test_pixels_and_times_are_those_of_the_file(untrained_qa, short_clip, rule):
    processor: MediaReading = untrained_qa.processor
    frames, metadata = VideoFrames.load_bytes(short_clip.read_bytes(), num_frames=7, sampling=rule)
    assert metadata.pop("do_sample_frames") is False
    given = processor.media_inputs("video", [(frames, metadata)], do_sample_frames=False)
    own = processor.media_inputs("video", [short_clip], num_frames=7, **({"sampling": rule} if rule else {}))
    assert given.pixels.equal(own.pixels)
    assert given.times_s.equal(own.times_s)
    assert given.durations_s.equal(own.durations_s)


def test_times_stay_exact_where_the_rate_varies(tmp_path):
    shown_ms = [i * 40 for i in range(30)] + [1200 + i * 520 for i in range(20)]
    path = tmp_path / "rates.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        for time_ms in shown_ms:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), time_ms % 250, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    _, metadata = VideoFrames.load_bytes(path.read_bytes(), num_frames=len(shown_ms))
    np.testing.assert_allclose(metadata["frames_indices"], np.array(shown_ms) / 1000, atol=1e-9)


def test_no_video_and_foreign_options_are_refused():
    with pytest.raises(VideoError):
        VideoFrames.load_bytes(b"no video at all")
    with pytest.raises(InputError, match="fps is no option of mmllm's video reader"):
        VideoFrames.load_bytes(b"", num_frames=3, fps=2)
