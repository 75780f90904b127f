"""Answers to the text tasks of Needle Threading, and their scores by task, length and depth."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.evaluation.threads.text_scores import chance, value_score
from mmllm.evaluation.threads.text_tasks import TASKS, Placement, Task, TextTask, text_tasks
from mmllm.fields import require, to_mapping
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.conversations import prompts_of
from mmllm.inference.prompts import PromptTooLong, Turn
from mmllm.runtime.files import append_text, drop_half_line, make_folder, write_json
from mmllm.runtime.progress import Progress

_TOKENS_A_VALUE = 48
"""A UUID is about 24 tokens; an answer may put words around it."""
_DEPTHS = 5
"""Scores are given for so many parts of the haystack."""


@dataclass(frozen=True, kw_only=True)
class TextThreadsConfig:
    """What is asked of which haystacks."""

    tasks: tuple[Task, ...] = TASKS
    pairs: tuple[int, ...] = (25, 50, 100)
    """Lengths of the haystacks, 80 characters a pair."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Of the single needle, in per cent."""
    repeats: int = 5
    """Haystacks of each length: the published repeat numbers from 0 on."""
    needles: int = 5
    """Of several and conditional needles."""
    placements: tuple[Placement, ...] = ("random", "clustered")
    """Where these needles are."""
    character: str = "*"
    """What the keys of conditional needles have."""
    threads: int = 3
    """How many run at once."""
    steps: tuple[int, ...] = (2, 5)
    """Lengths of threads."""

    def __post_init__(self) -> None:
        for name in ("tasks", "pairs", "depths", "placements", "steps"):
            require(len(getattr(self, name)) > 0, self, name, "at least one")
        require(min(self.pairs) >= 1, self, "pairs", "at least 1")
        require(all(0 <= depth <= 100 for depth in self.depths), self, "depths", "from 0 to 100")
        require(1 <= self.repeats <= 10_000, self, "repeats", "from 1 to 10,000")
        require(1 <= self.needles <= min(self.pairs), self, "needles", "at most the number of pairs")
        require(min(self.steps) >= 1, self, "steps", "at least 1")
        fits = self.threads >= 1 and self.threads * max(self.steps) <= min(self.pairs)
        require(
            fits, self, "threads", "at least 1, and few enough for all their steps to fit into the shortest haystack"
        )

    @property
    def all_tasks(self) -> list[TextTask]:
        """The tasks."""
        settings = to_mapping(self)
        return list(text_tasks(settings.pop("tasks"), seeds=range(settings.pop("repeats")), **settings))


def run_text(qa: VideoAnswering, config: TextThreadsConfig, folder: Path) -> dict[str, Any]:
    """Answers all tasks and writes `text.jsonl` and `metrics.json`; answers that are there are kept.

    Raises:
        InputError: if the model's tokenizer cannot write the haystacks.
    """
    tasks = config.all_tasks
    _require_characters(qa, tasks[0])
    file = make_folder(folder) / "text.jsonl"
    if file.exists():
        drop_half_line(file)
    told = {row["prompt"]: row for row in _rows(file)}
    rows = []
    with Progress("follow threads", len(tasks), "tasks") as bar:
        for task in tasks:
            key = f"{task.task} {task.pairs} {task.seed} {task.depth:g} {task.steps} {task.direction} {task.question}"
            row = told.get(key) or {"prompt": key, **_answered(qa, task)}
            if key not in told:
                append_text(file, json.dumps(row, ensure_ascii=False) + "\n")
            rows.append((task, row))
            bar.advance()
    scores = text_scores(rows)
    write_json(folder / "metrics.json", scores)
    return scores


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in file.read_text().splitlines()) if file.exists() else ()


def _answered(qa: VideoAnswering, task: TextTask) -> dict[str, Any]:
    """The answer with its score; a task that is longer than the model reads has a problem, and scores 0."""
    prompts = prompts_of(qa)
    try:
        prompt = prompts.prompt([Turn(role="user", content=(task.prompt,))])
    except PromptTooLong as problem:
        return {"answer": "", "score": 0.0, "problem": str(problem)}
    ids = prompts.generate([prompt], max_new_tokens=_TOKENS_A_VALUE * len(task.values))
    answer = prompts.plain(ids[0].tolist())
    return {"answer": answer, "score": value_score(answer, task), "problem": ""}


def _require_characters(qa: VideoAnswering, task: TextTask) -> None:
    """Refuses a model whose words cannot spell a UUID."""
    value = task.values[0]
    ids = qa.processor.tokenizer(value, add_special_tokens=False)["input_ids"]
    if "".join(qa.processor.tokenizer.decode(ids).split()) != value:
        raise InputError(
            "this model's tokenizer has a closed vocabulary, which cannot spell the keys of threads-text: use "
            "--suite threads, whose clips show shapes"
        )


def text_scores(rows: Iterable[tuple[TextTask, dict[str, Any]]]) -> dict[str, Any]:
    """Mean scores of all tasks, of each kind, and of each kind by characters and depth, with chance beside."""
    answered = list(rows)

    def scores(part: Callable[[TextTask], bool]) -> dict[str, float]:
        chosen = [(task, row) for task, row in answered if part(task)]
        return {
            "tasks": len(chosen),
            "score": statistics.fmean(row["score"] for _, row in chosen),
            "chance": statistics.fmean(chance(task) for task, _ in chosen),
            "too_long": sum(bool(row["problem"]) for _, row in chosen),
        }

    kinds = dict.fromkeys(_kind(task) for task, _ in answered)
    cells = dict.fromkeys((_kind(task), task.characters, _part(task)) for task, _ in answered)
    return {
        **scores(lambda _: True),
        "kinds": {kind: scores(lambda task, kind=kind: _kind(task) == kind) for kind in kinds},  # type: ignore[misc]
        "cells": [
            {
                "kind": kind,
                "characters": characters,
                "depth_percent": part,
                **scores(
                    lambda task, cell=(kind, characters, part): (_kind(task), task.characters, _part(task)) == cell  # type: ignore[misc]
                ),
            }
            for kind, characters, part in cells
        ],
    }


def _kind(task: TextTask) -> str:
    """The task, with the length and the direction of its threads."""
    return task.task if task.direction is None else f"{task.task} of {task.steps}, {task.direction}"


def _part(task: TextTask) -> int:
    """The depth, rounded to parts of the haystack."""
    return round(task.depth * (_DEPTHS - 1) / 100) * 100 // (_DEPTHS - 1)
