"""Passes, accepted drafts and time of every decoding method on the packaged model's questions, beside greedy decoding.

    python benchmarks/decoding.py [--seed 5] [--videos 10] [--json out.json]
    python benchmarks/decoding.py --llm smollm2-135m [--texts 20] [--tokens 48]

With --llm, a plain LLM continues prompts of benchmarks/data/prompts.json instead.

Each question is asked greedily and through each method, in turns. An exact method must give the greedy ids in the same
run, or the script ends with an error. Answers share a format, which makes them easy to guess: about other texts these
numbers say nothing. A draft model would be trained; here the model's own first layers draft, or the whole model from
fewer frames, so that acceptance can be seen but no time be saved. Trained drafts are named with their folders
(--methods flash:draft=FOLDER); benchmarks/drafts.py compares them with untrained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.asked import GREEDY, Asked, add_row
from benchmarks.layouts import markdown
from benchmarks.measuring import processor_s
from benchmarks.reducers import questions_by_clip
from benchmarks.results import Results, command_line, machine, option_parser
from benchmarks.text_decoding import METHODS as TEXT_METHODS
from benchmarks.text_decoding import compare_texts
from mmllm.decoding.choosing import decoding_of
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT_SMALL
from mmllm.inference.answering import VideoQA
from mmllm.interfaces import Decoding
from mmllm.runtime.progress import Progress

METHODS = (
    "token-recycling", "token-recycling:tree=80", "token-recycling:tree=13", "token-recycling:tree=13,rule=typical",
    "prompt-lookup", "assisted:layers=1", "spectr:layers=1", "spectr:frames=8,candidates=2",
    "dyspec:layers=1,threshold=0.1", "pearl:layers=1", "pearl:frames=8", "llmcad:layers=1", "llmcad:frames=8",
    "rapid", "rapid:eta=10", "bild:layers=1", "bild:frames=8", "cntp:trials=4",
)  # fmt: skip


@torch.no_grad()
def asked(qa: VideoQA, benchmark: Benchmark, methods: dict[str, Decoding | None]) -> dict[str, Asked]:
    """Every question through every method, in turns."""
    qa.keeps_prefix = False  # every way of decoding reads the whole prompt
    results = {name: Asked() for name in methods}
    by_clip = questions_by_clip(benchmark)
    with Progress("ask", len(by_clip), "clips") as bar:
        for clip, questions in by_clip.items():
            encoded = qa.encode_video(clip)
            for question in questions:
                torch.manual_seed(0)
                for name, method in methods.items():
                    result = results[name]
                    answer: Any = None

                    def ask(method: Decoding | None = method) -> None:
                        nonlocal answer
                        answer = qa.ask(encoded, question.question, decoding=method)  # noqa: B023 - called at once

                    result.seconds += processor_s(ask)
                    result.answers.append(answer.raw)
                    result.samples.append(Sample.asked(question).answered(answer))
            bar.advance()
    return results


def compare(results: Results, qa: VideoQA, benchmark: Benchmark, names: Sequence[str]) -> None:
    """The table of all methods; checks the answers of exact ones.

    Raises:
        MmllmError: if an exact method has changed an answer.
    """
    methods: dict[str, Decoding | None] = {GREEDY: None, **{name: decoding_of(name) for name in names}}
    found = asked(qa, benchmark, methods)
    for name, method in methods.items():
        add_row(results, "decoding", name, method, found[name], found[GREEDY])
    for name in [name for name in names if name.startswith("token-recycling")][:1]:
        method = methods[name]
        assert method is not None
        method.total = None
        again = asked(qa, benchmark, {GREEDY: None, name: method})
        add_row(results, "decoding", f"{name}, asked once more", method, again[name], again[GREEDY])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints it."""
    parser = option_parser(__doc__)
    parser.add_argument("--seed", type=int, default=5, help="of the clips")
    parser.add_argument("--videos", type=int, default=10, help="clips that are asked about")
    parser.add_argument("--methods", nargs="*", help="decoding methods, as for mmllm ask")
    parser.add_argument("--llm", help="folder, hub id or preset of a plain LLM that writes texts")
    parser.add_argument("--texts", type=int, default=20, help="that it writes")
    parser.add_argument("--tokens", type=int, default=48, help="of each, at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    if options.llm:
        compare_texts(results, options.llm, options.methods or TEXT_METHODS, options.texts, options.tokens)
    else:
        qa = VideoQA.from_pretrained(DEFAULT_SMALL)
        assert isinstance(qa, VideoQA)
        benchmark = fresh_benchmark(options.seed, videos=options.videos, workers=1)
        compare(results, qa, benchmark, options.methods or METHODS)
    for table, rows in results.tables.items():
        print(markdown(table, rows))
    results.save(options.json)


if __name__ == "__main__":
    main()
