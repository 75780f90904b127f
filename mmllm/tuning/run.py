"""A whole search for the cheapest reducer, in a folder of its own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mmllm import registry
from mmllm.datasets.records import Question
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.run import Benchmark
from mmllm.fields import to_mapping
from mmllm.inference.asking import VideoAnswering
from mmllm.runtime.files import make_folder, without_paths, write_json
from mmllm.train.record import claim, digest
from mmllm.train.run import locked
from mmllm.tuning.answers import ReducerAnswers
from mmllm.tuning.config import TuneConfig
from mmllm.tuning.report import results_of
from mmllm.tuning.search import ReducerSearch
from mmllm.tuning.settings import ReducerSettings


def tune(
    folder: Path, qa: VideoAnswering, benchmark: Benchmark, config: TuneConfig, *, workers: int = 1
) -> dict[str, Any]:
    """Searches for the cheapest reducer that is within a loss of mIoU; a killed search goes on.

    Args:
        folder: for `trials.jsonl`, `study.db`, `results.json` and `tuned_by.json`, which says of what they are.
        qa: the model.
        benchmark: the questions; those without a true span are not asked.
        config: what is searched for.
        workers: processes that decode.

    Returns:
        The content of `results.json`; see `mmllm.tuning.report`.

    Raises:
        InputError: if the folder holds another search, no question can be asked, or no reducer fits the model.
    """
    questions, left_out = questions_by_clip(qa, benchmark)
    settings = ReducerSettings(qa)
    settings.qa.max_new_tokens = config.max_new_tokens  # the caller's own model stays as it is
    reducers = config.reducers or tuple(registry.parts("reducer"))
    candidates, refused = settings.all_at(reducers, config.budgets)
    if not candidates:
        name, reason = next(iter(refused.items()))
        raise ConfigError(f"none of these reducers fits the model at these budgets; {name}: {reason}")
    clips = sorted(questions)
    random.Random(config.seed).shuffle(clips)
    make_folder(folder)
    with locked(folder, "tuning"):
        record = {
            "model": without_paths(settings.qa.identity()),
            "search": to_mapping(config),
            "candidates": [candidate.flag for candidate in candidates],
            "questions": {vid: digest(repr(own)) for vid, own in questions.items()},
        }
        claim(folder / "tuned_by.json", record, remedy="choose another --output")
        answers = ReducerAnswers(
            settings, settings.scout(reducers), questions, folder / "trials.jsonl", workers=workers
        )
        search = ReducerSearch(answers, candidates, clips, config, folder)
        outcomes = search.run()
        results = results_of(search, outcomes, refused, [*benchmark.bad_rows, *left_out])
        write_json(folder / "results.json", results)
    return results


def questions_by_clip(qa: VideoAnswering, benchmark: Benchmark) -> tuple[dict[str, list[Question]], list[str]]:
    """Clip -> its questions that have a true span, and why others are left out.

    Raises:
        InputError: if none is left.
    """
    questions: dict[str, list[Question]] = {}
    left_out = []
    hears = qa.processor.sound is not None
    for question in benchmark.questions:
        if question.video is None:
            left_out.append(f"{question.question_id}: video {question.vid} is missing")
        elif question.audio is not None and question.audio != hears:
            left_out.append(f"{question.question_id}: its row says audio: {str(question.audio).lower()}")
        elif question.truth().spans:
            questions.setdefault(question.vid, []).append(question)
    if not questions:
        raise InputError("the benchmark has no question with a true interval and a video, so there is no mIoU to keep")
    return questions, left_out
