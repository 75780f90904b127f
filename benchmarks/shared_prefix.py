"""Questions about one video as rows of a batch: the LLM's cache of the video copied for each row, or read once for all.

    python benchmarks/shared_prefix.py [--frames 4 25 90] [--rows 2 4 16] [--rounds 5] [--json out.json]

The cache of the video is kept before; answers have at most 16 tokens. Processor time on one thread, in turns. The LLMs
are those of `benchmarks/prefix.py`: the packaged one, 3 layers of width 96, and one with random weights, 4 of 384.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.intervals import turn_ratio
from benchmarks.layouts import markdown
from benchmarks.measuring import in_turns
from benchmarks.prefix import CLIP_SEED, QUESTIONS, wider
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.inference.encoded import EncodedVideo
from mmllm.llm import joined_prefixes
from mmllm.times.answers import Answer

NEVER = 1 << 60


def answers(qa: VideoQA, encoded: EncodedVideo, rows: int, least: int) -> list[Answer]:
    """The answers of a batch, where a prefix is read once if its rows have at least so many positions."""
    before, joined_prefixes.LEAST_SHARED = joined_prefixes.LEAST_SHARED, least
    try:
        return qa.ask_all(encoded, (QUESTIONS * rows)[:rows])
    finally:
        joined_prefixes.LEAST_SHARED = before


def measured(results: Results, name: str, qa: VideoQA, encoded: EncodedVideo, rows: int, rounds: int) -> None:
    """A row of the table."""
    qa.max_new_tokens = 16
    copied, shared = answers(qa, encoded, rows, NEVER), answers(qa, encoded, rows, 0)
    works = {"copied": lambda: answers(qa, encoded, rows, NEVER), "shared": lambda: answers(qa, encoded, rows, 0)}
    seconds = in_turns(works, rounds)
    positions = len(qa.read_opening(encoded).ids)
    numbers: dict[str, Number] = {
        "positions": positions,
        "rows": rows,
        "copied_s": sorted(seconds["copied"])[rounds // 2],
        "shared_s": sorted(seconds["shared"])[rounds // 2],
        "sooner_ratio": turn_ratio(seconds["copied"], seconds["shared"]),
        "same": sum(a == b for a, b in zip(copied, shared, strict=True)),
    }
    used = "once" if rows * positions >= joined_prefixes.LEAST_SHARED else "copied"
    results.add("shared-prefix", {"llm": name, "done": used}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the table."""
    parser = option_parser(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 25, 90], help="sampled frames, 16 positions each")
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 16], help="questions of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which time is measured")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    benchmark = fresh_benchmark(CLIP_SEED, videos=1, workers=1)
    clip = next(question.video for question in benchmark.questions if question.video is not None)
    llms = {
        "packaged": VideoQA.from_pretrained(DEFAULT_SMALL, path="plain"),
        "4 layers of 384": wider(max(options.frames)),
    }
    for name, qa in llms.items():
        for frames in options.frames:
            encoded = qa.encode_video(clip, num_frames=frames)
            for rows in options.rows:
                measured(results, name, qa, encoded, rows, options.rounds)
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
