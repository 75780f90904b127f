"""`mmllm eval MODEL DATA`: answers, scores, and the baselines that show what they are worth."""

from __future__ import annotations

import json as json_text
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.errors import InputError


def evaluate(
    model: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    videos: Path | None = None,
    output: Path | None = None,
    limit: int | None = None,
    shuffle: bool = True,
    reducer: tuple[str, ...] | None = None,
    max_new_tokens: int = 64,
    json: bool = False,
) -> int:
    """Answer a benchmark's questions and score the answers as ActivityNet-RTL does: mIoU and P@0.5.

    Args:
        model: folder or hub id of a model.
        data: folder with val.json (and train.json, to fit baselines to), or an annotation file of that schema.
        videos: folder of the videos; by default `videos` beside the annotations.
        output: folder for samples.jsonl and metrics.json; MODEL/eval if MODEL is a folder. Questions answered there
            already are not asked again.
        limit: only the first so many videos.
        shuffle: also ask each question about another video, which shows what is guessed from the words alone.
        reducer: token reducers in place of the model's own, such as fastervlm:keep=8.
        max_new_tokens: an answer is cut after so many.
        json: print the scores as JSON instead of a table.
    """
    from mmllm.answering import VideoQA
    from mmllm.evaluation.run import read_benchmark

    benchmark = read_benchmark(data, videos)
    if limit is not None:
        vids = sorted({question.vid for question in benchmark.questions})[:limit]
        kept = [question for question in benchmark.questions if question.vid in vids]
        benchmark = type(benchmark)(questions=kept, fit=benchmark.fit)
    if not benchmark.questions:
        raise InputError(f"{data}: there is no question to answer")
    folder = output or (Path(model) / "eval" if Path(model).is_dir() else Path("runs") / "eval")
    changes = {} if reducer is None else {"reducers": list(reducer)}
    qa = VideoQA.from_pretrained(model, **changes)
    qa.max_new_tokens = max_new_tokens
    scores = evaluate_into(folder, qa, benchmark, shuffle=shuffle)
    _show(scores, json)
    failed = scores["failed"]
    return 3 if failed else 0


def evaluate_into(folder: Path, qa: Any, benchmark: Any, *, shuffle: bool = True) -> dict[str, Any]:
    """Answers and scores a benchmark; writes `samples.jsonl`, `shuffled.jsonl` and `metrics.json` into `folder`.

    Raises:
        InputError: if the folder holds the answers of another model or of other settings.
    """
    from mmllm.evaluation.run import answer_all, scores_of

    folder.mkdir(parents=True, exist_ok=True)
    _same_model(folder, qa)
    started = time.perf_counter()
    samples, shuffled = answer_all(qa, benchmark.questions, folder, shuffle=shuffle)
    scores = scores_of(samples, shuffled, benchmark.fit)
    scores["seconds"] = round(time.perf_counter() - started, 1)
    (folder / "metrics.json").write_text(json_text.dumps(scores, indent=2) + "\n")
    return scores


def _same_model(folder: Path, qa: Any) -> None:
    """Marks the folder as one model's answers; a stopped evaluation is only continued by the same model."""
    from mmllm.fingerprint import fingerprint

    told = {
        "weights": fingerprint(qa.model),
        "config": json_text.loads(qa.model.config.to_json_string(use_diff=False)),
        "num_frames": qa.processor.num_frames,
        "max_new_tokens": qa.max_new_tokens,
    }
    record = folder / "answered_by.json"
    if record.exists() and json_text.loads(record.read_text()) != told:
        raise InputError(f"{folder} holds answers of another model or other settings: choose another --output")
    record.write_text(json_text.dumps(told) + "\n")


def _show(scores: dict[str, Any], json: bool) -> None:
    if json:
        print(json_text.dumps(scores, indent=2))
        return
    from rich.console import Console

    from mmllm.evaluation.score import score_summary, score_table

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False)
