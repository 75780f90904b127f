"""Answers to the questions of a benchmark, written as they come, so that a stopped evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmllm.answering import VideoQA, Watched
from mmllm.datasets.records import Question
from mmllm.datasets.rtl import read_rtl
from mmllm.errors import InputError
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.metrics import over_videos, sample_iou
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.evaluation.score import score_samples
from mmllm.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions to be answered, and those that blind baselines are fitted to."""

    questions: list[Question]
    fit: list[Question]
    """Empty if there are none; the baselines are then fitted to the scored questions, which favours them."""


def read_benchmark(data: Path, videos: Path | None = None) -> Benchmark:
    """Reads a folder with `val.json` (and `train.json`), or an annotation file in ActivityNet-RTL's schema.

    Args:
        data: the folder or the file.
        videos: where the videos are; by default the folder `videos` beside the annotations.

    Raises:
        InputError: if there is nothing to be read.
    """
    path = data / "val.json" if data.is_dir() else data
    if not path.exists():
        raise InputError(f"{data}: no annotations there (expected a JSON file, or a folder with val.json)")
    folder = videos or path.parent / "videos"
    questions = read_rtl(path, folder, policy="skip").items
    train = path.parent / "train.json"
    return Benchmark(questions=questions, fit=read_rtl(train).items if train.exists() and train != path else [])


def answer_all(
    qa: VideoQA,
    questions: Sequence[Question],
    output: Path,
    *,
    shuffle: bool = True,
    progress: bool = True,
    **generate: Any,
) -> tuple[list[Sample], list[Sample]]:
    """Answers every question about its own video and, with `shuffle`, about another one.

    Args:
        qa: the model.
        questions: all questions.
        output: folder of `samples.jsonl` and `shuffled.jsonl`; questions already answered there are not asked again.
        shuffle: also ask each question about the video that comes next, which shows what is guessed from the words.
        progress: show a bar.
        generate: options of transformers' `generate`.

    Returns:
        The samples, and those with shuffled videos.
    """
    output.mkdir(parents=True, exist_ok=True)
    own, other = _Log(output / "samples.jsonl"), _Log(output / "shuffled.jsonl")
    by_video: dict[str, list[Question]] = {}
    for question in questions:
        by_video.setdefault(question.vid, []).append(question)
    vids = sorted(by_video)
    with Progress("answer questions", len(vids), "videos", shown=progress) as bar:
        for i, vid in enumerate(vids):
            mine = own.missing(by_video[vid])
            theirs = other.missing(by_video[vids[i - 1]]) if shuffle and len(vids) > 1 else []
            if mine or theirs:
                watched, problem = _watch(qa, by_video[vid][0])
                own.write(_answered(qa, watched, problem, mine, generate))
                other.write(_answered(qa, watched, problem, theirs, generate))
            bar.advance()
    return own.samples(questions), other.samples(questions) if shuffle else []


def _watch(qa: VideoQA, question: Question) -> tuple[Watched | None, str]:
    try:
        if question.video is None:
            raise InputError(f"video {question.vid} is not there")
        return qa.watch(question.video), ""
    except InputError as problem:
        return None, str(problem)


def _answered(
    qa: VideoQA, watched: Watched | None, problem: str, questions: Sequence[Question], generate: dict[str, Any]
) -> Iterable[Sample]:
    if watched is None:
        return [replace(_blank(question), error=problem) for question in questions]
    samples = []
    by_length: dict[float, list[Question]] = {}
    for question in questions:
        by_length.setdefault(question.duration_s or watched.duration_s, []).append(question)
    for seconds, group in by_length.items():
        answers = qa.ask_all(watched, [question.question for question in group], seconds, **generate)
        samples += [_blank(q).answered(answer) for q, answer in zip(group, answers, strict=True)]
    return samples


def _blank(question: Question) -> Sample:
    truth = question.truth()
    return Sample(
        question_id=question.question_id,
        vid=question.vid,
        family=question.family,
        question=question.question,
        duration_s=question.duration_s,
        truth_spans=truth.spans,
        truth_text=truth.text,
        error="not answered",
    )


class _Log:
    """A file of samples that grows as answers come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a kill cut the last line short
            whole = path.read_text().rpartition("\n")[0]
            path.write_text(whole + "\n" if whole else "")
        known = read_samples(path) if path.exists() and path.stat().st_size else []
        self.done = {sample.question_id: sample for sample in known}

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        return [question for question in questions if question.question_id not in self.done]

    def write(self, samples: Iterable[Sample]) -> None:
        with self.path.open("a") as file:
            for sample in samples:
                self.done[sample.question_id] = sample
                file.write(json.dumps(sample.to_json(), ensure_ascii=False) + "\n")

    def samples(self, questions: Sequence[Question]) -> list[Sample]:
        return [self.done[question.question_id] for question in questions if question.question_id in self.done]


def scores_of(
    samples: Sequence[Sample], shuffled: Sequence[Sample], fit: Sequence[Question], seed: int = 0
) -> dict[str, Any]:
    """All scores with their baselines; see `mmllm.evaluation.score.score_samples`.

    With shuffled videos also `shuffled_miou` and `shuffled_p_at_0.5`, and `shuffled_miou` of each family.
    """
    baseline = BlindBaseline.fit([_blank(question) for question in fit] if fit else samples)
    scores = score_samples(samples, baseline, seed=seed)
    scores["baselines_fitted_on"] = "the training questions" if fit else "the scored questions"
    if shuffled:
        timed = [sample for sample in shuffled if sample.truth_spans]
        scores["shuffled_miou"] = over_videos(timed, sample_iou)
        scores["shuffled_p_at_0.5"] = over_videos(timed, lambda sample: float(sample_iou(sample) >= 0.5))
        for family, row in scores["families"].items():
            row["shuffled_miou"] = over_videos([s for s in timed if s.family == family], sample_iou)
    return scores
