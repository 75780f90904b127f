"""Answers to the questions of a benchmark, written as they come, so that a stopped evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mmllm.datasets.formats import format_of, read_questions
from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.metrics import over_videos, sample_iou
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.evaluation.score import score_samples
from mmllm.inference.answering import EncodedVideo, VideoQA
from mmllm.preprocessing.clip_reader import in_workers
from mmllm.runtime import processes
from mmllm.runtime.progress import Progress
from mmllm.tokens import VideoClip
from mmllm.video.quarantine import Failure, Quarantine


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
    workers: int = 1,
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
        workers: processes that decode.
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
    open_questions = {}
    for i in processes.share(range(len(vids))):
        mine = own.missing(by_video[vids[i]])
        theirs = other.missing(by_video[vids[i - 1]]) if shuffle and len(vids) > 1 else []
        if mine or theirs:
            open_questions[vids[i]] = mine, theirs
    clips = _clips(qa, {vid: by_video[vid][0].video for vid in open_questions}, workers)
    bar = Progress("answer questions", len(open_questions), "videos", shown=progress and processes.is_main())
    with closing(clips), bar, torch.random.fork_rng():
        for vid, clip in clips:
            encoded, problem = (None, clip) if isinstance(clip, str) else (qa.encode_video(clip), "")
            for log, asked in zip((own, other), open_questions[vid], strict=True):
                if seed is not None:
                    torch.manual_seed(seed(f"{vid} {log.path.stem}"))
                log.write(_answered(qa, encoded, problem, asked, generate))
            bar.advance()
    for log, order in ((own, vids), (other, vids[-1:] + vids[:-1])):
        log.gather([question for vid in order for question in by_video[vid]])
    return own.samples(questions), other.samples(questions) if shuffle else []


def _clips(
    qa: VideoQA, videos: Mapping[str, Path | None], workers: int
) -> Generator[tuple[str, VideoClip | str], None, None]:
    """Each video's frames, or why there are none, in the order of `videos`; decoded ahead in worker processes."""
    reading = Quarantine(qa.processor.clip_reader(), in_workers(workers))
    there = [path for path in videos.values() if path is not None]
    with closing(reading.outcomes(there)) as outcomes:
        for vid, path in videos.items():
            if path is None:
                yield vid, f"video {vid} is not there"
                continue
            _, clip = next(outcomes)
            yield vid, clip.told if isinstance(clip, Failure) else clip


def _answered(
    qa: VideoQA,
    encoded: EncodedVideo | None,
    problem: str,
    questions: Sequence[Question],
    generate: dict[str, Any],
) -> Iterable[Sample]:
    if encoded is None:
        return [Sample.asked(_with_length(question, None)).failed(problem) for question in questions]
    samples = []
    by_length: dict[float, list[Question]] = {}
    for question in questions:
        known = _with_length(question, encoded.duration_s)
        by_length.setdefault(known.duration_s or encoded.duration_s, []).append(known)
    for seconds, group in by_length.items():
        answers = qa.ask_all(encoded, [question.question for question in group], seconds, **generate)
        samples += [Sample.asked(q).answered(answer) for q, answer in zip(group, answers, strict=True)]
    return samples


def _with_length(question: Question, decoded_s: float | None) -> Question:
    """The question with the length of its video: as annotated, else as decoded.

    A video that cannot be decoded is taken to end with the last interval that is annotated in it.
    """
    if question.duration_s is not None or not question.spans:
        return question
    return replace(question, duration_s=decoded_s or max(span.end_s for span in question.spans))


class _Log:
    """A file of samples that grows as answers come; several processes write files of their own, merged at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mine = path if processes.count() == 1 else path.with_name(f"{path.stem}.part{processes.rank()}.jsonl")
        self.done: dict[str, Sample] = {}
        with processes.main_first():
            for file in self._files():
                if processes.is_main() and not file.read_bytes().endswith(b"\n"):  # a kill cut the last line short
                    whole = file.read_text().rpartition("\n")[0]
                    file.write_text(whole + "\n" if whole else "")
            self._read()
        processes.wait()  # before anybody writes, everybody has read

    def _files(self) -> list[Path]:
        """The merged file and those of single processes, as far as there are any."""
        files = [self.path, *sorted(self.path.parent.glob(f"{self.path.stem}.part*.jsonl"))]
        return [file for file in files if file.exists() and file.stat().st_size]

    def _read(self) -> None:
        self.done = {sample.question_id: sample for file in self._files() for sample in read_samples(file)}

    def gather(self, questions: Sequence[Question]) -> None:
        """Merges what single processes have written into one file, in the order of the questions."""
        processes.wait()
        parts = [file for file in self._files() if file != self.path]
        if parts or processes.count() > 1:
            self._read()
            processes.wait()
            if processes.is_main():
                asked = [question.question_id for question in questions if question.question_id in self.done]
                ordered = dict.fromkeys([*asked, *self.done])
                merged = self.path.with_name(f".{self.path.name}.merged")
                merged.write_text("".join(_line(self.done[name]) for name in ordered))
                merged.replace(self.path)
                for part in parts:
                    part.unlink()
        processes.wait()

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        return [question for question in questions if question.question_id not in self.done]

    def write(self, samples: Iterable[Sample]) -> None:
        with self.mine.open("a") as file:
            for sample in samples:
                self.done[sample.question_id] = sample
                file.write(_line(sample))

    def samples(self, questions: Sequence[Question]) -> list[Sample]:
        return [self.done[question.question_id] for question in questions if question.question_id in self.done]


def _line(sample: Sample) -> str:
    return json.dumps(sample.to_json(), ensure_ascii=False) + "\n"


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
