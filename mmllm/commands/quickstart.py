"""`mmllm quickstart`: render, train, evaluate and ask; prints a table and draws a picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.runtime.files import write_json
from mmllm.times.answers import Span

PICTURE = "answer.png"


def quickstart(output: Path = Path("runs/quickstart"), smoke: bool = False, seed: int = 0) -> None:
    """Render clips, train a tiny model on them, evaluate it on other clips, and ask it a question; minutes on a CPU.

    The same command continues a stopped run.

    Args:
        output: the run's folder.
        smoke: run every step within a minute; the model then learns almost nothing.
        seed: seed of all random numbers.
    """
    import logging
    from dataclasses import replace

    from mmllm.train.recipes import recipe
    from mmllm.train.run import train

    logging.getLogger("mmllm").setLevel(logging.INFO)
    start = time.perf_counter()
    settings = replace(recipe("smoke" if smoke else "quickstart"), seed=seed)
    model = train(settings, output)
    scores = _evaluate(output, model)
    picture, answers = _ask(output, model)
    scores["seconds"] = round(time.perf_counter() - start, 1)
    write_json(output / "metrics.json", scores)
    _show(scores, output, picture, answers)


def _evaluate(output: Path, model: Path) -> dict[str, Any]:
    """Scores of the trained model on the held-out clips."""
    from mmllm.commands.evaluate import evaluate_into
    from mmllm.evaluation.run import read_benchmark
    from mmllm.inference.answering import VideoQA

    return evaluate_into(output / "eval", VideoQA.from_pretrained(model), read_benchmark(output / "data"))


def _ask(output: Path, model: Path) -> tuple[Path, str]:
    """Asks about the first held-out clip that has a question with a true span, and draws answer and truth.

    Returns:
        The picture's path, and the answers of this model and of the packaged one as text.
    """
    from mmllm.evaluation.run import read_benchmark
    from mmllm.hub.sources import DEFAULT_SMALL
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
    packaged = VideoQA.from_pretrained(DEFAULT_SMALL)
    packaged_answer = packaged.ask(packaged.encode_video(question.video), question.question)
    answers = {"trained here": answer, "comes with mmllm": packaged_answer, "truth": question.truth()}
    lines = [f"  {name + ':':<18}{_seconds(row.spans)}  {row.text}" for name, row in answers.items()]
    return picture, "\n".join([f'mmllm ask {question.video} "{question.question}"', *lines])


def _seconds(spans: Sequence[Span]) -> str:
    """Spans as text."""
    return ", ".join(f"{span.start_s:.1f} s to {span.end_s:.1f} s" for span in spans)


def _show(scores: dict[str, Any], output: Path, picture: Path, answers: str) -> None:
    """Prints the scores, the answers and the paths of all results."""
    from rich.console import Console

    from mmllm.evaluation.report import score_summary, score_table

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False)
    shuffled = scores["shuffled_miou"]
    console.print(f"mIoU with videos shuffled: {100 * shuffled:.1f}", highlight=False)
    console.print(f"\n{answers}", highlight=False, soft_wrap=True)
    console.print(
        f"\npicture: {picture}\nnumbers: {output / 'metrics.json'}\nmodel:   {output / 'model'}", soft_wrap=True
    )
