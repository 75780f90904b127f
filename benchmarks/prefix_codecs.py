"""What codecs make of the LLM's cache of a video: the size of files, and which answers from them are the same."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measuring import timed
from benchmarks.results import Number, Results
from mmllm.evaluation.run import Benchmark
from mmllm.inference.answering import VideoQA
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.prefix_file import open_prefix, save_prefix

CODECS = {
    "plain": "plain",
    **{f"{bins} bins": f"kvcode:keys={bins},values={bins},later={bins}" for bins in (128, 64, 32, 16, 8)},
    "64 bins, differences from anchors": "kvcode:keys=64,values=64,later=64,anchors=10",
    "32 bins, differences from anchors": "kvcode:keys=32,values=32,later=32,anchors=10",
    "32 bins, a scale for each head": "kvcode:keys=32,values=32,later=32,scale=head",
    "32 bins, zlib": "kvcode:keys=32,values=32,later=32,coder=zlib",
    "as released": "kvcode",
}


def codecs(
    results: Results, qa: VideoQA, long: tuple[VideoQA, EncodedVideo], benchmark: Benchmark, folder: Path
) -> None:
    """A row for each codec; `long` is a model with a video of many positions."""
    asked: dict[Path, list[str]] = {}
    for question in benchmark.questions:
        if question.video is not None:
            asked.setdefault(question.video, []).append(question.question)
    videos = {path: qa.encode_video(path) for path in asked}
    own = {path: qa.ask_all(encoded, asked[path]) for path, encoded in videos.items()}
    file = folder / "video.kv"
    for name, codec in CODECS.items():
        size = numbers = same = count = 0
        opening_s = []
        for path, encoded in videos.items():
            size += save_prefix(file, qa, encoded, codec)
            stored, seconds = timed(lambda: open_prefix(file, qa))
            opening_s.append(seconds)
            numbers += qa.read_opening(encoded).cache_bytes // 4
            answers = qa.ask_all(stored, asked[path])
            same += sum(a.raw == b.raw for a, b in zip(own[path], answers, strict=True))
            count += len(answers)
        long_size = save_prefix(file, *long, codec)
        long_numbers = long[0].read_opening(long[1]).cache_bytes // 4
        row: dict[str, Number] = {
            "bits": 8 * size / numbers,
            "long_bits": 8 * long_size / long_numbers,
            "half_percent": 100 * long_size / (2 * long_numbers),
            "same_percent": 100 * same / count,
            "questions": count,
            "open_ms": 1000 * sorted(opening_s)[len(opening_s) // 2],
        }
        results.add("prefix-codecs", {"codec": name, "setting": f"`{codec}`"}, row)
