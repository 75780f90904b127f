"""Questions about a video of which the LLM has read the beginning of the prompt, and what codecs make of its cache.

    python benchmarks/prefix.py [--frames 90] [--rounds 5] [--videos 12] [--json out.json]
    python benchmarks/prefix.py --llm smollm2-135m [--frames 90] [--rounds 1] [--json out.json]

Time: eight questions about one clip, with and without the LLM's cache of the video, in turns on one thread; answers of
at most 16 tokens, frames are encoded before. The packaged model has 3 layers of width 96, so each new token costs more
in Python than in sums; so a second LLM, with random weights, has 4 layers of width 384. With the path `plain` the
prompt has some 1,450 positions. Both ways of asking write their answers in the same loop.

With --llm, a pretrained LLM is asked instead, behind a projector with random weights: its answers mean nothing. So all
of them get 16 tokens, whatever ends the LLM writes among them.

Codecs: the packaged model is asked about clips that it has not seen, from its own cache and from files. Their prompts
have 67 positions, for which tables weigh much; the size at 1,441 positions stands beside.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.intervals import turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns, timed
from benchmarks.prefix_codecs import codecs
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import cache_bytes
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.kept_prefix import PrefixSlot
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
Asking = Callable[[VideoQA, EncodedVideo, Mapping[str, Any]], list[Answer]]


def in_one_batch(qa: VideoQA, encoded: EncodedVideo, options: Mapping[str, Any]) -> list[Answer]:
    """All questions at once; the video is read anew."""
    encoded.prefix.kept = None
    return qa.ask_all(encoded, QUESTIONS, **options)


def first_one(qa: VideoQA, encoded: EncodedVideo, options: Mapping[str, Any]) -> list[Answer]:
    """The first question; the video is read anew."""
    encoded.prefix.kept = None
    return [qa.ask(encoded, QUESTIONS[0], **options)]


def later_ones(qa: VideoQA, encoded: EncodedVideo, options: Mapping[str, Any]) -> list[Answer]:
    """One question after the other, when the first has been asked."""
    return [qa.ask(encoded, question, **options) for question in QUESTIONS[1:]]


ASKED: tuple[Asking, ...] = (in_one_batch, first_one, later_ones)
ROWS: dict[str, tuple[Asking, ...]] = {
    "eight questions, one batch": (in_one_batch,),
    "eight questions, one by one": (first_one, later_ones),
    "questions 2 to 8, one by one": (later_ones,),
}


def wider(frames: int) -> VideoQA:
    """An LLM of 8 million parameters with random weights; its answers mean nothing, their time does."""
    decoder = DecoderConfig(width=384, layers=4, mlp_width=1536)
    return VideoQA(*build_model(ModelConfig(path="plain", decoder=decoder, num_frames=frames), seed=0))


def pretrained(name: str, frames: int) -> VideoQA:
    """A pretrained LLM behind an encoder and a projector with random weights."""
    config = ModelConfig(path="plain", language_model=name, template="chatml", time="text", num_frames=frames)
    return VideoQA(*build_model(config, seed=0))


def times(
    results: Results, name: str, qa: VideoQA, encoded: EncodedVideo, rounds: int, options: Mapping[str, Any]
) -> None:
    """A row for each way of asking, with these options of `generate`."""
    qa.max_new_tokens = 16
    without = qa.with_stages()
    without.keeps_prefix = False
    sides = {"with": (qa, encoded), "without": (without, dataclasses.replace(encoded, prefix=PrefixSlot()))}
    for side in sides.values():
        first_one(*side, options)
    works = {(ask, side): lambda ask=ask, side=side: ask(*sides[side], options) for ask in ASKED for side in sides}
    taken = in_turns(works, rounds, take=timed, warm_up=0)
    kept = qa.read_opening(encoded)
    held = cache_bytes(qa.model.config.text_config, len(kept.ids), 4)
    assert held == kept.cache_bytes
    for way, parts in ROWS.items():
        answers, seconds = {}, {}
        for side in sides:
            answers[side] = [answer for ask in parts for answer in taken[ask, side][-1][0]]
            seconds[side] = [sum(taken[ask, side][turn][1] for ask in parts) for turn in range(rounds)]
        numbers: dict[str, Number] = {
            "positions": len(kept.ids),
            "without_s": sorted(seconds["without"])[rounds // 2],
            "with_s": sorted(seconds["with"])[rounds // 2],
            "sooner_ratio": turn_ratio(seconds["without"], seconds["with"]),
            "same": sum(a == b for a, b in zip(answers["with"], answers["without"], strict=True)),
            "cache_mib": held / 2**20,
        }
        results.add("prefix-times", {"llm": name, "asked": way}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the tables."""
    parser = option_parser(__doc__)
    parser.add_argument("--frames", type=int, default=90, help="sampled frames, 16 positions each")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    parser.add_argument("--videos", type=int, default=12, help="clips for the codecs")
    parser.add_argument("--llm", help="folder, hub id or preset of a pretrained LLM that is asked instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers", "constriction"))
    benchmark = fresh_benchmark(CLIP_SEED, videos=1 if options.llm else options.videos, workers=1)
    clip = next(question.video for question in benchmark.questions if question.video is not None)
    if options.llm:
        qa, written = pretrained(options.llm, options.frames), {"eos_token_id": None}
        times(results, Path(options.llm).name, qa, qa.encode_video(clip), options.rounds, written)
    else:
        qa = VideoQA.from_pretrained(DEFAULT_SMALL, path="plain")
        encoded = qa.encode_video(clip, num_frames=options.frames)
        times(results, "packaged", qa, encoded, options.rounds, {})
        other = wider(options.frames)
        times(results, "4 layers of 384", other, other.encode_video(clip), options.rounds, {})
        with tempfile.TemporaryDirectory() as folder:
            codecs(results, VideoQA.from_pretrained(DEFAULT_SMALL), (qa, encoded), benchmark, Path(folder))
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
