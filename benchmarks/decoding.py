"""Passes, accepted drafts and time of every decoding method on the packaged model's questions, beside greedy decoding.

    python benchmarks/decoding.py [--seed 5] [--videos 10] [--json out.json]

Each question is asked greedily and through each method, in turns. An exact method must give the greedy ids in the same
run, or the script ends with an error. Answers share a format, which makes them easy to guess: about other texts these
numbers say nothing. A draft model would be trained; here the model's own first layer drafts, or the whole model from
fewer frames, so that acceptance can be seen but no time be saved. Trained drafts are named with their folders
(--methods flash:draft=FOLDER); benchmarks/drafts.py compares them with untrained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.layouts import markdown
from benchmarks.measuring import processor_s
from benchmarks.reducers import questions_by_clip
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.counts import DecodingCounts
from mmllm.errors import MmllmError
from mmllm.evaluation.fresh import fresh_benchmark
from mmllm.evaluation.metrics import sample_iou
from mmllm.evaluation.run import Benchmark
from mmllm.evaluation.samples import Sample
from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.interfaces import Decoding
from mmllm.runtime.progress import Progress

GREEDY = "one token a pass"
METHODS = (
    "token-recycling", "token-recycling:tree=40", "token-recycling:tree=13", "token-recycling:tree=13,rule=typical",
    "prompt-lookup", "assisted:layers=1", "spectr:layers=1", "spectr:frames=8,candidates=2",
    "dyspec:layers=1,threshold=0.1", "pearl:layers=1", "pearl:frames=8", "llmcad:layers=1", "llmcad:frames=8",
    "rapid", "rapid:eta=10", "bild:layers=1", "bild:frames=8", "cntp:trials=4",
)  # fmt: skip


@dataclass
class Asked:
    """What one way of decoding gave."""

    answers: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def miou(self) -> float:
        """Mean IoU in per cent, over questions with true spans."""
        ious = [sample_iou(sample) for sample in self.samples if sample.truth_spans]
        return 100 * sum(ious) / max(1, len(ious))


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
        add_row(results, name, method, found[name], found[GREEDY])
    for name in [name for name in names if name.startswith("token-recycling")][:1]:
        method = methods[name]
        assert method is not None
        method.total = None
        again = asked(qa, benchmark, {GREEDY: None, name: method})
        add_row(results, f"{name}, asked once more", method, again[name], again[GREEDY])


def add_row(results: Results, name: str, method: Decoding | None, result: Asked, greedy: Asked) -> None:
    """A row of the table.

    Raises:
        MmllmError: if an exact method has changed an answer.
    """
    counts: DecodingCounts | None = None if method is None else method.total
    same = sum(a == b for a, b in zip(result.answers, greedy.answers, strict=True))
    law = "exact" if method is None or not method.other_law else "another"
    if law == "exact" and same < len(greedy.answers):
        raise MmllmError(f"{name} is exact, and has changed {len(greedy.answers) - same} answers")
    numbers = {
        "same_percent": 100 * same / len(greedy.answers),
        "miou_percent": result.miou,
        "time_ratio": result.seconds / greedy.seconds,
    }
    if counts is not None:
        numbers |= {
            "passes": counts.target_passes,
            "passes_ratio": counts.target_passes / counts.new_tokens,
            "tokens_per_pass": counts.tokens_per_pass,
            "acceptance_percent": 100 * counts.acceptance,
            "positions": counts.target_positions,
            "draft_passes": counts.draft_passes,
        }
    results.add("decoding", {"method": name, "law": law, "questions": str(len(greedy.answers))}, numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints it."""
    parser = option_parser(__doc__)
    parser.add_argument("--seed", type=int, default=5, help="of the clips")
    parser.add_argument("--videos", type=int, default=10, help="clips that are asked about")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="decoding methods, as for mmllm ask")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results(command_line(__file__, arguments), machine("torch", "transformers"))
    qa = VideoQA.from_pretrained(DEFAULT)
    assert isinstance(qa, VideoQA)
    compare(results, qa, fresh_benchmark(options.seed, videos=options.videos, workers=1), options.methods)
    print(markdown("decoding", results.tables["decoding"]))
    results.save(options.json)


if __name__ == "__main__":
    main()
