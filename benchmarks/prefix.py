"""Questions about a video of which the LLM has read the beginning of the prompt, and what codecs make of its cache.

    python benchmarks/prefix.py [--frames 90] [--rounds 5] [--videos 12] [--json out.json]

Time: eight questions about one clip, with and without the LLM's cache of the video, in turns on one thread; answers of
at most 16 tokens, frames are encoded before. The packaged model has 3 layers of width 96, so each new token costs more
in Python than in sums; so a second LLM, with random weights, has 4 layers of width 384. With the path `plain` the
prompt has some 1,450 positions. Both ways of asking write their answers in the same loop.

Codecs: the packaged model is asked about clips that it has not seen, from its own cache and from files. Their prompts
have 67 positions, for which tables weigh much; the size at 1,441 positions stands beside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.intervals import turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns, timed
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.run import Benchmark
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.prefix_file import open_prefix, save_prefix
from mmllm.times.answers import Answer
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

THINGS = (
    "the red circle spin", "the blue square move", "something spin", "the red circle move", "the green square grow",
    "the yellow star appear", "something grow", "something blink",
)  # fmt: skip
QUESTIONS = [f"When does {thing}?" for thing in THINGS]
CLIP_SEED = 100
"""The clips of training are rendered from seed 0."""
CODECS = {
    "plain": "plain",
    **{f"{bins} bins": f"kvcode:keys={bins},values={bins},later={bins}" for bins in (128, 64, 32, 16, 8)},
    "64 bins, differences from anchors": "kvcode:keys=64,values=64,later=64,anchors=10",
    "32 bins, differences from anchors": "kvcode:keys=32,values=32,later=32,anchors=10",
    "32 bins, a scale for each head": "kvcode:keys=32,values=32,later=32,scale=head",
    "32 bins, zlib": "kvcode:keys=32,values=32,later=32,coder=zlib",
    "as released": "kvcode",
}
Asking = Callable[[VideoQA, EncodedVideo], list[Answer]]


def in_one_batch(qa: VideoQA, encoded: EncodedVideo) -> list[Answer]:
    """All questions at once; the video is read anew."""
    encoded.prefix.kept = None
    return qa.ask_all(encoded, QUESTIONS)


def one_by_one(qa: VideoQA, encoded: EncodedVideo) -> list[Answer]:
    """One question after the other; the video is read anew for the first."""
    encoded.prefix.kept = None
    return [qa.ask(encoded, question) for question in QUESTIONS]


def later_ones(qa: VideoQA, encoded: EncodedVideo) -> list[Answer]:
    """All but the first, when that has been asked."""
    return [qa.ask(encoded, question) for question in QUESTIONS[1:]]


ASKED: dict[str, Asking] = {
    "eight questions, one batch": in_one_batch,
    "eight questions, one by one": one_by_one,
    "questions 2 to 8, one by one": later_ones,
}


def wider(frames: int) -> VideoQA:
    """An LLM of 8 million parameters with random weights; its answers mean nothing, their time does."""
    decoder = DecoderConfig(width=384, layers=4, mlp_width=1536)
    return VideoQA(*build_model(ModelConfig(path="plain", decoder=decoder, num_frames=frames), seed=0))


def times(results: Results, name: str, qa: VideoQA, encoded: EncodedVideo, rounds: int) -> None:
    """A row for each way of asking."""
    qa.max_new_tokens = 16
    without = qa.with_stages()
    without.keeps_prefix = False
    for way, ask in ASKED.items():
        qa.ask(encoded, QUESTIONS[0])
        same = sum(a == b for a, b in zip(ask(qa, encoded), ask(without, encoded), strict=True))
        qa.ask(encoded, QUESTIONS[0])  # clears what the other way of asking has cleared
        works = {"with": lambda ask=ask: ask(qa, encoded), "without": lambda ask=ask: ask(without, encoded)}
        seconds = in_turns(works, rounds)
        kept = qa.read_opening(encoded)
        held = cache_bytes(qa.model.config.text_config, len(kept.ids), 4)
        assert held == kept.cache_bytes
        numbers: dict[str, Number] = {
            "positions": len(kept.ids),
            "without_s": sorted(seconds["without"])[rounds // 2],
            "with_s": sorted(seconds["with"])[rounds // 2],
            "sooner_ratio": turn_ratio(seconds["without"], seconds["with"]),
            "same": same,
            "cache_mib": held / 2**20,
        }
        results.add("prefix-times", {"llm": name, "asked": way}, numbers)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--frames", type=int, default=90, help="sampled frames, 16 positions each")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    parser.add_argument("--videos", type=int, default=12, help="clips for the codecs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", "constriction"))
    benchmark = fresh_benchmark(CLIP_SEED, videos=options.videos, workers=1)
    qa = VideoQA.from_pretrained(DEFAULT, path="plain")
    clip = next(question.video for question in benchmark.questions if question.video is not None)
    encoded = qa.encode_video(clip, num_frames=options.frames)
    times(results, "packaged", qa, encoded, options.rounds)
    other = wider(options.frames)
    times(results, "4 layers of 384", other, other.encode_video(clip, num_frames=options.frames), options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        codecs(results, VideoQA.from_pretrained(DEFAULT), (qa, encoded), benchmark, Path(folder))
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
