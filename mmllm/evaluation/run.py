"""Answers to the questions of a benchmark, written as they come, so that a stopped evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mmllm.answering import VideoQA, Watched
from mmllm.datasets.formats import format_of, read_questions
from mmllm.datasets.records import Question
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
    bad_rows: list[str] = field(default_factory=list)
    """Rows of the annotations that are no question, with the reason."""

    def first(self, videos: int) -> Benchmark:
        """The questions of only so many videos."""
        vids = sorted({question.vid for question in self.questions})[:videos]
        return replace(self, questions=[question for question in self.questions if question.vid in vids])


def read_benchmark(
    data: Path, videos: Path | None = None, format: str = "auto", durations: Path | None = None
) -> Benchmark:
    """Reads a folder with `val.json` (and `train.json`), or a file of annotations of any known form.

    A question whose video is not there stays: it is not answered, counts as 0 and is reported.

    Args:
        data: the folder or the file; of captioned videos each event is asked for.
        videos: where the videos are; by default the folder `videos` beside the annotations. For dialogues the folder
            that their paths are relative to, by default the file's own.
        format: `auto`, or the form's name, see `formats`.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.

    Raises:
        InputError: if there is nothing to be read, or none of the videos is there.
    """
    path = data / "val.json" if data.is_dir() else data
    if not path.exists():
        raise InputError(f"{data}: no annotations there (expected a JSON file, or a folder with val.json)")
    form = format_of(path) if format == "auto" else format
    folder = videos if videos is not None or form == "dialogues" else path.parent / "videos"
    found = read_questions(path, folder, form, durations=durations)
    places = {question.question_id: question.video for question in found.items}
    if form == "dialogues":
        questions, bad = found.items, found.bad
    else:
        asked = read_questions(path, None, form, durations=durations)
        questions, bad = [replace(one, video=places.get(one.question_id)) for one in asked.items], asked.bad
    if questions and not any(question.video for question in questions):
        raise InputError(f"{folder}: has none of the videos of {path}")
    train = path.parent / "train.json"
    fit = read_questions(train).items if train.exists() and train != path else []
    return Benchmark(questions=questions, fit=fit, bad_rows=[str(problem) for problem in bad])


def answer_all(
    qa: VideoQA,
    questions: Sequence[Question],
    output: Path,
    *,
    shuffle: bool = True,
    progress: bool = True,
    seed: Callable[[str], int] | None = None,
    **generate: Any,
) -> tuple[list[Sample], list[Sample]]:
    """Answers every question about its own video and, with `shuffle`, about another one.

    Args:
        qa: the model.
        questions: all questions.
        output: folder of `samples.jsonl` and `shuffled.jsonl`; questions already answered there are not asked again.
        shuffle: also ask each question about the video that comes next, which shows what is guessed from the words.
        progress: show a bar.
        seed: a name -> what the answers of one video are drawn from, where they are sampled.
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
    with Progress("answer questions", len(vids), "videos", shown=progress) as bar, torch.random.fork_rng():
        for i, vid in enumerate(vids):
            mine = own.missing(by_video[vid])
            theirs = other.missing(by_video[vids[i - 1]]) if shuffle and len(vids) > 1 else []
            if mine or theirs:
                watched, problem = _watch(qa, by_video[vid][0])
                for log, asked in ((own, mine), (other, theirs)):
                    if seed is not None:
                        torch.manual_seed(seed(f"{vid} {log.path.stem}"))
                    log.write(_answered(qa, watched, problem, asked, generate))
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
        return [Sample.asked(question).failed(problem) for question in questions]
    samples = []
    by_length: dict[float, list[Question]] = {}
    for question in questions:
        by_length.setdefault(question.duration_s or watched.duration_s, []).append(question)
    for seconds, group in by_length.items():
        answers = qa.ask_all(watched, [question.question for question in group], seconds, **generate)
        samples += [Sample.asked(q).answered(answer) for q, answer in zip(group, answers, strict=True)]
    return samples


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
    baseline = BlindBaseline.fit([Sample.asked(question) for question in fit] if fit else samples)
    scores = score_samples(samples, baseline, seed=seed)
    scores["baselines_fitted_on"] = "the training questions" if fit else "the scored questions"
    if shuffled:
        timed = [sample for sample in shuffled if sample.truth_spans]
        scores["shuffled_miou"] = over_videos(timed, sample_iou)
        scores["shuffled_p_at_0.5"] = over_videos(timed, lambda sample: float(sample_iou(sample) >= 0.5))
        for family, row in scores["families"].items():
            row["shuffled_miou"] = over_videos([s for s in timed if s.family == family], sample_iou)
    return scores
