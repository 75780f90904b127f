"""`mmllm quickstart`: render, train, evaluate and ask, with one table and one picture at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.times.answers import Span

PICTURE = "answer.png"


def quickstart(output: Path = Path("runs/quickstart"), smoke: bool = False, seed: int = 0) -> None:
    """Render clips, train a tiny model on them, evaluate it on fresh ones and ask it a question. Minutes on a CPU.

    The same command goes on where it was stopped.

    Args:
        output: folder of the run.
        smoke: go through every stage within a minute; the model will have learned next to nothing.
        seed: of everything random.
    """
    import logging
    from dataclasses import replace

    from mmllm.train.recipes import recipe
    from mmllm.train.run import train

    logging.getLogger("mmllm").setLevel(logging.INFO)
    started = time.perf_counter()
    chosen = replace(recipe("smoke" if smoke else "quickstart"), seed=seed)
    model = train(chosen, output)
    scores = _evaluate(output, model)
    picture, told = _ask(output, model)
    scores["seconds"] = round(time.perf_counter() - started, 1)
    (output / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n")
    _show(scores, output, picture, told)


def _evaluate(output: Path, model: Path) -> dict[str, Any]:
    from mmllm.commands.evaluate import evaluate_into
    from mmllm.evaluation.run import read_benchmark
    from mmllm.inference.answering import VideoQA

    return evaluate_into(output / "eval", VideoQA.from_pretrained(model), read_benchmark(output / "data"))


def _ask(output: Path, model: Path) -> tuple[Path, str]:
    """Asks about the first held-out clip with a question about time, and draws answer and truth.

    Returns the picture, and what this model and the packaged one answer.
    """
    from mmllm.evaluation.run import read_benchmark
    from mmllm.hub.sources import DEFAULT
    from mmllm.inference.answering import VideoQA
    from mmllm.inference.plotting import plot_answer

    timed = [question for question in read_benchmark(output / "data").questions if question.truth().spans]
    if not timed or timed[0].video is None:
        raise InputError(f"{output / 'data'}: no held-out clip to ask about")
    question = timed[0]
    qa = VideoQA.from_pretrained(model)
    encoded = qa.encode_video(question.video)
    answer = qa.ask(encoded, question.question)
    picture = plot_answer(encoded.clip, question.question, answer.spans, output / PICTURE, truth=question.truth().spans)
    packaged = VideoQA.from_pretrained(DEFAULT)
    theirs = packaged.ask(packaged.encode_video(question.video), question.question)
    told = {"trained here": answer, "comes with mmllm": theirs, "truth": question.truth()}
    lines = [f"  {name + ':':<18}{_seconds(said.spans)}  {said.text}" for name, said in told.items()]
    return picture, "\n".join([f'mmllm ask {question.video} "{question.question}"', *lines])


def _seconds(spans: Sequence[Span]) -> str:
    return ", ".join(f"{span.start_s:.1f} s to {span.end_s:.1f} s" for span in spans)


def _show(scores: dict[str, Any], output: Path, picture: Path, told: str) -> None:
    from rich.console import Console

    from mmllm.evaluation.score import score_summary, score_table

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False)
    shuffled = scores["shuffled_miou"]
    console.print(f"mIoU with videos shuffled: {100 * shuffled:.1f}", highlight=False)
    console.print(f"\n{told}", highlight=False, soft_wrap=True)
    console.print(
        f"\npicture: {picture}\nnumbers: {output / 'metrics.json'}\nmodel:   {output / 'model'}", soft_wrap=True
    )
