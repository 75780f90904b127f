"""Size, depth and reference frames as encoders write them into parameter sets."""

from __future__ import annotations

import random

import pytest

from mmllm.video._parameter_sets import SequenceParameters, sequence_parameters


@pytest.mark.parametrize("container", ["mp4", "raw"])
@pytest.mark.parametrize(
    ("codec", "options", "pixel_format", "depth", "references"),
    [
        ("h264", {"x264-params": "ref=4:bframes=0:log-level=none"}, "yuv420p", 8, 4),
        ("h264", {"x264-params": "ref=16:log-level=none", "profile": "high"}, "yuv420p", 8, 16),
        ("h264", {"x264-params": "ref=2:bframes=0:cqm=jvt:log-level=none"}, "yuv420p10le", 10, 2),
        ("h264", {"x264-params": "ref=3:bframes=0:interlaced=1:log-level=none"}, "yuv420p", 8, 3),
        ("hevc", {"x265-params": "ref=3:bframes=0:log-level=none"}, "yuv420p", 8, 3),
        ("hevc", {"x265-params": "ref=5:bframes=0:log-level=none"}, "yuv420p10le", 10, 5),
    ],
)
def test_what_encoders_write(container, codec, options, pixel_format, depth, references, make_clip):
    import av

    kind = codec if container == "raw" else "mp4"
    path = make_clip(
        f"set{references}{depth}{codec}.{kind}",
        codec={"h264": "libx264", "hevc": "libx265"}[codec],
        frames=8,
        size=(144, 256),
        pixel_format=pixel_format,
        options=options,
        container_format=kind,
    )
    with av.open(str(path), format=kind) as file:
        configuration = bytes(file.streams.video[0].codec_context.extradata)
    read = [sequence_parameters(codec, configuration)]
    if container == "raw":
        read.append(sequence_parameters(codec, path.read_bytes()))
    for parameters in read:
        assert parameters is not None
        assert (parameters.width, parameters.depth, parameters.references) == (256, depth, references)
        assert 144 <= parameters.height <= 160


def test_other_bytes_have_none():
    generator = random.Random(0)
    for _ in range(3000):
        data = bytes(generator.randrange(256) for _ in range(generator.randrange(40)))
        for start in (b"", b"\x01", b"\0\0\1\x67", b"\0\0\1\x42\x01"):
            for codec in ("h264", "hevc", "vp9"):
                assert isinstance(sequence_parameters(codec, start + data), SequenceParameters | None)
    assert sequence_parameters("vp9", b"\0\0\1\x67" + bytes(20)) is None
    assert sequence_parameters("h264", b"\0\0\1\x67" + bytes(2000)) is None
