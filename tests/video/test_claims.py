"""Small files that claim much: refused before FFmpeg opens them, quickly and without memory."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import pytest
from versions import needs_pyav_17_1

from mmllm.video.opening import LimitExceeded, VideoError, VideoLimits, VideoOpenError, open_video

CASES = Path(__file__).resolve().parents[1] / "data" / "cases"
MEASURE = """
import resource, sys, time
from mmllm.video.opening import VideoError, open_video
import av, PIL.Image
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    open_video(sys.argv[1]).close()
    kind = "opened"
except VideoError as problem:
    kind = type(problem).__name__
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(kind, grown, time.perf_counter() - start)
"""


def opened_in_a_child(path: Path) -> tuple[str, int, float]:
    """What came of opening a file: the error's type, the megabytes that it took, the seconds."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=100
    ).stdout.split()
    return output[0], int(output[1]), float(output[2])


def box(kind: bytes, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def full(kind: bytes, *numbers: int) -> bytes:
    """A box with version 0, no flags, and numbers of 32 bits."""
    return box(kind, bytes(4), struct.pack(f">{len(numbers)}I", *numbers))


def track(
    *tables: bytes,
    handler: bytes = b"vide",
    codec: bytes = b"avc1",
    size: tuple[int, int] = (64, 64),
    edits: bytes = b"",
) -> bytes:
    entry = box(codec, bytes(24), struct.pack(">HH", *size), bytes(50))
    media = box(
        b"mdia",
        full(b"mdhd", 0, 0, 1000, 1000, 0),
        box(b"hdlr", bytes(8), handler, bytes(13)),
        box(b"minf", box(b"stbl", box(b"stsd", bytes(4), struct.pack(">I", 1), entry), *tables)),
    )
    return box(b"trak", full(b"tkhd", *[0] * 20), edits, media)


def movie(*boxes: bytes) -> bytes:
    return box(b"ftyp", b"isom", bytes(4)) + box(b"moov", full(b"mvhd", *[0] * 24), *boxes) + box(b"mdat", bytes(99))


MANY = 30_000_000
SAMPLES = (full(b"stts", 1, MANY, 40), full(b"stsc", 1, 1, MANY, 1), full(b"stco", 1, 600))
HOSTILE = {
    "one track": movie(track(*SAMPLES, full(b"stsz", 1, MANY))),
    "sound": movie(track(*SAMPLES, full(b"stsz", 1, MANY), handler=b"soun", codec=b"mp4a")),
    "compact sizes": movie(track(*SAMPLES, full(b"stz2", 8, MANY))),
    "hidden in free space": box(b"ftyp", b"isom", bytes(4))
    + box(b"free", full(b"mvhd", *[0] * 24), track(*SAMPLES, full(b"stsz", 1, MANY)))
    + box(b"mdat", bytes(99)),
    "many tracks together": movie(*[track(*SAMPLES, full(b"stsz", 1, 1_900_000))] * 40),
    "chunks of sound": movie(
        track(
            full(b"stts", 1, MANY, 1),
            full(b"stsc", 1, 1, 2**32 - 1, 1),
            full(b"stco", 9, *[600] * 9),
            full(b"stsz", 1, MANY),
            handler=b"soun",
            codec=b"sowt",
        )
    ),
    "key frames": movie(track(full(b"stts", 0), full(b"stsz", 1, 9), full(b"stss", MANY))),
    "edits": movie(
        track(*SAMPLES, full(b"stsz", 1, 1_000_000), edits=box(b"edts", full(b"elst", 999, *[1000, 0, 65536] * 999)))
    ),
    "fragments": movie(box(b"mvex", full(b"trex", 1, 1, 0, 0, 0)), track(full(b"stsz", 0, 0)))
    + box(b"moof", full(b"mfhd", 1), box(b"traf", full(b"tfhd", 1), full(b"trun", MANY))),
    "names of metadata": movie(box(b"meta", bytes(4), full(b"hdlr", *[0] * 6), full(b"keys", MANY))),
    "tracks": movie(*[track(full(b"stsz", 1, 1))] * 900),
    "large pictures": movie(track(full(b"stsz", 1, 1), size=(65535, 65535))),
    "compressed": movie(
        box(
            b"cmov",
            box(b"dcom", b"zlib"),
            box(
                b"cmvd",
                struct.pack(">I", 900),
                zlib.compress(box(b"moov", full(b"mvhd", *[0] * 24), track(*SAMPLES, full(b"stsz", 1, MANY)))),
            ),
        )
    ),
    "compressed to little": movie(
        box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", b"\xff" * 4, zlib.compress(b"moov")))
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_claims_of_small_files_are_refused(name):
    with pytest.raises(LimitExceeded):
        open_video(HOSTILE[name])


@pytest.mark.parametrize("name", ["one track", "many tracks together", "chunks of sound", "edits", "fragments"])
def test_no_memory_is_taken_for_claims(name, tmp_path):
    path = tmp_path / "claims.mp4"
    path.write_bytes(HOSTILE[name])
    kind, megabytes, seconds = opened_in_a_child(path)
    assert kind == "LimitExceeded"
    assert megabytes < 20
    assert seconds < 1


def test_the_shared_case_of_30_million_samples():
    with pytest.raises(LimitExceeded, match=r"30000000 frames, in a file of 740 bytes"):
        open_video(CASES / "fault_samples_30m_in_740_bytes.mp4")
    kind, megabytes, seconds = opened_in_a_child(CASES / "fault_samples_30m_in_740_bytes.mp4")
    assert kind == "LimitExceeded"
    assert megabytes < 20
    assert seconds < 1


def test_a_large_screen_of_a_gif_is_named():
    with pytest.raises(LimitExceeded, match="65535 x 65535"):
        open_video(CASES / "fault_65535x65535.gif")


@pytest.mark.parametrize(
    "head",
    [
        b"DKIF\0\0\x20\0VP80" + struct.pack("<HHIII", 60000, 60000, 30, 1, 9) + bytes(8),
        b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(99),
        b"RIFF" + struct.pack("<I", 999) + b"AVI LIST" + struct.pack("<I", 192) + b"hdrlavih"
        + struct.pack("<I", 56) + bytes(32) + struct.pack("<ii", 60000, -60000) + bytes(200),
        b"\x1a\x45\xdf\xa3\x80" b"\x18\x53\x80\x67\xff" b"\x16\x54\xae\x6b\x8c" b"\xae\x8a" b"\xe0\x88"
        b"\xb0\x82\xea\x60\xba\x82\xea\x60",
    ],
    ids=["ivf", "y4m", "avi", "matroska"],
)  # fmt: skip
def test_large_pictures_of_other_containers_are_named(head):
    with pytest.raises(LimitExceeded, match="60000 x 60000"):
        open_video(head)


def many_streams(path: Path, count: int, size: int, codec: str) -> Path:
    import av

    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast"} if codec == "libx264" else {}
        streams = [container.add_stream(codec, rate=25, options=options) for _ in range(count)]
        for stream in streams:
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
        frame = av.VideoFrame(size, size, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        for stream in streams:
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_many_streams_are_refused(suffix, tmp_path):
    path = many_streams(tmp_path / f"many.{suffix}", 70, 32, "mpeg2video" if suffix == "ts" else "mpeg4")
    with pytest.raises(LimitExceeded, match=r"70 streams; allowed are 64: .*ffmpeg"):
        open_video(path)
    with open_video(path, limits=VideoLimits(streams=70)) as video:
        assert len(video.info.streams) == 70


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_decoders_of_many_large_tracks_share_their_memory(suffix, tmp_path):
    path = many_streams(tmp_path / f"large.{suffix}", 40, 2048, "libx264")
    kind, megabytes, _ = opened_in_a_child(path)
    assert kind == "opened"
    assert megabytes < 160


def test_reference_frames_of_8k(make_clip):
    path = make_clip(
        "references.h264",
        frames=1,
        size=(4320, 7680),
        container_format="h264",
        options={"preset": "ultrafast", "x264-params": "ref=16:level=6.2:log-level=none"},
    )
    with pytest.raises(LimitExceeded, match="16 reference frames of 7680 x 4320"):
        open_video(path)
    ordinary = make_clip("references.mp4", frames=3, options={"x264-params": "ref=16:log-level=none"})
    with open_video(ordinary) as video:
        assert len(video) == 3
    with pytest.raises(LimitExceeded, match="reference frames"):
        open_video(ordinary, limits=VideoLimits(decoder_bytes=100_000))


@pytest.mark.parametrize("filler", [b"\xff", b"\x55"])
def test_a_stream_without_start_codes(filler, make_clip, tmp_path):
    start = make_clip("start.h264", frames=2, container_format="h264").read_bytes()
    path = tmp_path / "endless.h264"
    path.write_bytes(start + filler * (40 << 20))
    with pytest.raises(LimitExceeded, match="without a start code"):
        open_video(path)
    kind, megabytes, _ = opened_in_a_child(path)
    assert kind == "LimitExceeded"
    assert megabytes < 30
    with open_video(start + filler * (1 << 20)) as video:
        assert len(video) >= 1


def test_packets_have_a_limit(b_frames):
    with pytest.raises(LimitExceeded, match="stored for one frame"):
        open_video(b_frames, limits=VideoLimits(packet_bytes=200))


def test_an_index_table_of_mxf(make_clip):
    whole = make_clip("claims.mxf", codec="mpeg2video", rate=25, frames=30).read_bytes()
    with open_video(whole) as video:
        assert len(video) == 30
    at = whole.index(bytes.fromhex("060e2b34025301010d01020101100100"))
    duration = whole.index(bytes.fromhex("3f0c0008"), at) + 4
    with pytest.raises(LimitExceeded, match="frames or more"):
        open_video(whole[:duration] + struct.pack(">Q", 2**30) + whole[duration + 8 :])


@needs_pyav_17_1
@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "ts", "mxf", "nut"])
def test_damaged_headers_end_in_a_typed_error_or_in_frames(name, make_clip):
    codec = "mpeg2video" if name in ("mxf", "ts") else "mpeg4"
    whole = make_clip(f"damaged.{name}", codec=codec, rate=25, frames=8).read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 12)):
            data[generator.randrange(min(len(data), generator.choice([64, 2000, len(data)])))] = generator.randrange(
                256
            )
        with warnings.catch_warnings(), contextlib.suppress(VideoError):
            warnings.simplefilter("ignore")
            with open_video(bytes(data), limits=VideoLimits(cpu_s=20, stall_s=20)) as video:
                assert len(video) > 0


def test_ordinary_files_are_not_refused(make_clip):
    for name, options in (("plain.mp4", {}), ("parts.mp4", {"movflags": "frag_keyframe+empty_moov"})):
        import av

        path = make_clip(name, frames=20)
        copy = path.with_name(f"copy_{name}")
        with av.open(str(path)) as source, av.open(str(copy), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        with open_video(copy) as video:
            assert len(video) == 20


def test_a_missing_index_is_named():
    with pytest.raises(
        VideoOpenError, match=r"the index \(moov\) is missing, the recording or download was not finished"
    ):
        open_video(CASES / "no_index.mp4")


def test_a_segment_without_its_beginning_is_named():
    segment = box(b"styp", b"msdh", bytes(4)) + box(b"moof", full(b"mfhd", 1)) + box(b"mdat", bytes(99))
    for data in (segment, segment[16:]):
        with pytest.raises(VideoOpenError, match=r"a segment of a stream without its init part \(moov\): .*cat"):
            open_video(data)


def test_an_index_that_is_cut_short_is_named(make_clip):
    whole = make_clip("cut_index.mp4", frames=30).read_bytes()
    with pytest.raises(VideoOpenError, match=r"index \(moov\) is cut short"):
        open_video(whole[: whole.index(b"stbl") + 60])


def test_a_beginning_without_its_segments_is_named():
    data = movie(box(b"mvex", full(b"trex", 1, 1, 0, 0, 0)), track(full(b"stsz", 0, 0)))
    with pytest.raises(VideoOpenError, match="the init part of a stream without its segments"):
        open_video(data)


def test_covers_are_streams():
    covers = [box(b"data", struct.pack(">II", 13, 0), b"\xff\xd8\xff" + bytes(99))] * 100
    data = movie(box(b"udta", box(b"meta", bytes(4), full(b"hdlr", *[0] * 6), box(b"ilst", box(b"covr", *covers)))))
    with pytest.raises(LimitExceeded, match="100 streams"):
        open_video(data)


def test_attached_pictures_are_streams():
    files = b"\x61\xa7\x80" * 100
    head = b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff\x19\x41\xa4\x69" + (0x4000 | len(files)).to_bytes(2, "big")
    with pytest.raises(LimitExceeded, match="100 streams"):
        open_video(head + files)


def test_encrypted_pictures_are_named():
    with pytest.raises(VideoOpenError, match="encrypted"):
        open_video(movie(track(full(b"stsz", 1, 1), codec=b"encv")))
