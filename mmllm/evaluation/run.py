"""Answer the questions of a benchmark. Answers are written as they come, so that a stopped evaluation can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmllm.datasets.folder_rates import folder_rates, with_rate
from mmllm.datasets.formats import BESIDE, format_of, questions_of, read_annotations, read_questions
from mmllm.datasets.lengths import Lengths, fit_to_videos
from mmllm.datasets.records import Question
from mmllm.datasets.shards import is_shards, with_split
from mmllm.errors import InputError
from mmllm.evaluation.baselines import BlindBaseline
from mmllm.evaluation.metrics import over_videos, sample_iou
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.evaluation.score import score_samples
from mmllm.evaluation.span_metrics import reaches
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.chain_config import ChainConfig
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.piecewise import WHOLE_FRAMES
from mmllm.preprocessing.clip_reader import in_workers
from mmllm.runtime import processes
from mmllm.runtime.files import append_text, drop_half_line, make_folder, write_text
from mmllm.runtime.progress import Progress
from mmllm.times.stamps import STAMP
from mmllm.tokens import VideoClip
from mmllm.video.errors import VideoError
from mmllm.video.names import existing, nearest
from mmllm.video.quarantine import Failure, Quarantine

MOST_REASONS = 5
"""At most so many bad rows are told in a message."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions to be answered, and questions to fit the blind baselines to."""

    questions: list[Question]
    fit: list[Question]
    """If empty, the baselines are fitted to the scored questions, which favours the baselines."""
    bad_rows: list[str] = field(default_factory=list)
    """Rows of the annotations that are no question, with the reason."""
    notes: list[str] = field(default_factory=list)
    """Times that were clipped, and keys of the annotations that nobody reads."""
    kept: TemporaryDirectory[str] | None = None
    """The folder of videos that were streamed; it is deleted with the last benchmark that needs it."""

    def first(self, videos: int) -> Benchmark:
        """The benchmark with the questions of at most so many videos."""
        vids = sorted({question.vid for question in self.questions})[:videos]
        return replace(self, questions=[question for question in self.questions if question.vid in vids])


def read_benchmark(
    data: Path,
    videos: Path | None = None,
    format: str = "auto",
    durations: Path | None = None,
    fps: float | None = None,
) -> Benchmark:
    """Reads a folder with `val.json` (and `train.json`), or a file of annotations in any format of `formats`.

    A question whose video is missing stays in the benchmark: it is not answered, counts as 0 and is reported.

    Args:
        data: the folder or the file. For captioned videos there is one question for each event.
        videos: folder of the videos; by default the folder `videos` beside the annotations. For dialogues the folder
            that their paths are relative to, by default the file's own.
        format: `auto`, or a name of `mmllm.datasets.formats`.
        durations: Charades' table of lengths, or the map from NExT-QA's ids to paths.
        fps: images a second of folders of frames, for rows that have no `fps`.

    Raises:
        InputError: if there are no annotations, if no row is a question, or if all videos are missing.
    """
    data = existing(data) or data
    path = data / "val.json" if data.is_dir() else data
    if is_shards(data):
        path = with_split(data, "val")
    elif not path.exists():
        raise InputError(f"{data}: has no annotations (expected a JSON file, or a folder with val.json){nearest(path)}")
    form = format_of(path) if format == "auto" else format
    folder = videos if videos is not None or form in BESIDE else path.parent / "videos"
    rows = fit_to_videos(read_annotations(path, folder, form, durations=durations), Lengths(fps), "repair")
    with_video = questions_of(rows)
    if form in BESIDE:
        every, questions = with_video, with_video.items
    else:  # read without a folder, a question stays although its video is missing
        paths_by_id = {question.question_id: question.video for question in with_video.items}
        every = read_questions(path, None, form, durations=durations)
        questions = [replace(question, video=paths_by_id.get(question.question_id)) for question in every.items]
    if not questions:
        reasons = "; ".join(str(problem) for problem in every.bad[:MOST_REASONS])
        raise InputError(f"{path}: the benchmark has no question{': ' + reasons if reasons else ''}")
    if not any(question.video for question in questions):
        raise InputError(f"{folder}: has none of the videos of {path}")
    return Benchmark(
        questions=with_rate(_with_own_ids(questions), fps),
        fit=_questions_to_fit(path),
        bad_rows=[str(problem) for problem in every.bad],
        notes=[*(f"repaired: {problem}" for problem in every.repaired), *every.unused],
    )


def _questions_to_fit(path: Path) -> list[Question]:
    """The training questions beside the scored ones: of train.json, or of the shards' split `train`; else none."""
    train = path.parent / "train.json"
    if is_shards(path) and not path.exists():  # a split of shards
        train = with_split(path.parent, "train")
    readable = train.exists() or is_shards(train)
    return read_questions(train).items if readable and train not in (path, path.parent) else []


def _with_own_ids(questions: Sequence[Question]) -> list[Question]:
    """The questions; videos of the same name in different folders get their folder's name as well."""
    files: dict[str, set[Path]] = {}
    for question in questions:
        if question.video is not None:
            files.setdefault(question.vid, set()).add(question.video)
    names: dict[Path, str] = {}
    for paths in files.values():
        for depth in range(2, max(len(path.parts) for path in paths) + 1 if len(paths) > 1 else 0):
            names |= {path: "/".join(path.with_suffix("").parts[-depth:]) for path in paths}
            if len({names[path] for path in paths}) == len(paths):
                break
    return [
        replace(question, vid=names[question.video]) if question.video in names else question for question in questions
    ]


def answer_all(
    qa: VideoAnswering,
    questions: Sequence[Question],
    output: Path,
    *,
    shuffle: bool = True,
    progress: bool = True,
    seed: Callable[[str], int] | None = None,
    workers: int = 1,
    chain: ChainConfig | None = None,
    **generate: Any,
) -> tuple[list[Sample], list[Sample]]:
    """Answers every question about its own video and, with `shuffle`, about another one.

    Args:
        qa: the model.
        questions: all questions.
        output: folder of `samples.jsonl` and `shuffled.jsonl`; questions already answered there are not asked again.
        shuffle: also ask each question about the next video. The score of these answers is what the words alone give.
        progress: show a bar.
        seed: gives a random seed for a name; used for the sampled answers of one video. No seed is set if None.
        workers: processes that decode.
        chain: settings of asking in a chain; None for no chain.
        generate: options of transformers' `generate`.

    Returns:
        The samples, and those with shuffled videos.
    """
    make_folder(output)
    log, shuffled_log = (_Log(output / f"{name}.jsonl", len(questions)) for name in ("samples", "shuffled"))
    by_video: dict[str, list[Question]] = {}
    for question in questions:
        by_video.setdefault(question.vid, []).append(question)
    # for each video of this process: its own questions and those of the video before it, without the answered ones
    vids = sorted(by_video)
    open_questions = {}
    for i in processes.share(range(len(vids))):
        own = log.missing(by_video[vids[i]])
        shuffled = shuffled_log.missing(by_video[vids[i - 1]]) if shuffle and len(vids) > 1 else []
        if own or shuffled:
            open_questions[vids[i]] = own, shuffled
    # answers, a video at a time
    qa.processor.folder_rates = folder_rates(questions)
    clips = read_clips(qa, {vid: by_video[vid][0].video for vid in open_questions}, workers)
    bar = Progress("answer questions", len(open_questions), "videos", shown=progress and processes.is_main())
    with closing(clips), bar, torch.random.fork_rng():
        for vid, clip in clips:
            encoded, problem = (None, clip) if isinstance(clip, str) else encoded_or_reason(qa, clip)
            for target, group in zip((log, shuffled_log), open_questions[vid], strict=True):
                if seed is not None:
                    torch.manual_seed(seed(f"{vid} {target.path.stem}"))
                target.write(heard_and_answered(qa, clip, encoded, problem, group, {"chain": chain, **generate}))
            bar.advance()
    # one file of all processes, in the order in which one process would have written it
    for target, order in ((log, vids), (shuffled_log, vids[-1:] + vids[:-1])):
        target.gather([question for vid in order for question in by_video[vid]])
    return log.samples(questions), shuffled_log.samples(questions) if shuffle else []


def read_clips(
    qa: VideoAnswering, videos: Mapping[str, Path | None], workers: int
) -> Generator[tuple[str, VideoClip | Path | str], None, None]:
    """Each video's frames, or the reason why it has none, in the order of `videos`. Worker processes decode ahead.

    Of many frames a video nobody holds all: they are decoded while they are encoded, so here stands their path.
    """
    reading = Quarantine(qa.processor.clip_reader(), in_workers(workers))
    present = [path for path in videos.values() if path is not None and qa.processor.num_frames <= WHOLE_FRAMES]
    with closing(reading.outcomes(present)) as outcomes:
        for vid, path in videos.items():
            if path is None:
                yield vid, f"video {vid} is missing"
                continue
            if qa.processor.num_frames > WHOLE_FRAMES:
                yield vid, path
                continue
            _, clip = next(outcomes)
            yield vid, clip.told if isinstance(clip, Failure) else clip


def encoded_or_reason(qa: VideoAnswering, video: VideoClip | Path, **options: Any) -> tuple[EncodedVideo | None, str]:
    """The encoded video, or None and why it cannot be read."""
    try:
        return qa.encode_video(video, **options), ""
    except VideoError as problem:
        return None, f"{type(problem).__name__}: {' '.join(str(problem).split())}"


def heard_and_answered(
    qa: VideoAnswering,
    clip: VideoClip | Path | str,
    encoded: EncodedVideo | None,
    problem: str,
    questions: Sequence[Question],
    generate: dict[str, Any],
) -> list[Sample]:
    """The answered questions of one video, each with or without its sound as its row says."""
    hears = qa.processor.sound is not None
    deaf = [question for question in questions if question.audio and not hears]
    silent = [question for question in questions if question.audio is False and hears]
    usual = [question for question in questions if question not in deaf and question not in silent]
    samples = list(answered(qa, encoded, problem, usual, generate))
    samples += answered(qa, None, problem or "its row says audio: true, and this model does not hear", deaf, generate)
    if silent and not isinstance(clip, str):
        encoded, problem = encoded_or_reason(qa, clip, audio=False)
    samples += answered(qa, encoded, problem, silent, generate)
    order = {question.question_id: number for number, question in enumerate(questions)}
    return sorted(samples, key=lambda sample: order[sample.question_id])


def answered(
    qa: VideoAnswering,
    encoded: EncodedVideo | None,
    problem: str,
    questions: Sequence[Question],
    options: dict[str, Any],
) -> Iterable[Sample]:
    """The answered questions of one video; all failed with `problem` if the video could not be encoded.

    `options` are those of `VideoQA.ask_all`.
    """
    if encoded is None:
        return [Sample.asked(_with_length(question, None)).failed(problem) for question in questions]
    samples = []
    by_duration: dict[float, list[Question]] = {}  # one batch has one duration
    for question in questions:
        with_length = _with_length(question, encoded.duration_s)
        by_duration.setdefault(with_length.duration_s or encoded.duration_s, []).append(with_length)
    for duration_s, group in by_duration.items():
        answers = qa.ask_all(
            encoded,
            [question.question for question in group],
            duration_s,
            histories=[question.history for question in group],
            systems=[question.system for question in group],
            **options,
        )
        samples += [Sample.asked(question).answered(answer) for question, answer in zip(group, answers, strict=True)]
    return samples


def _with_length(question: Question, decoded_s: float | None) -> Question:
    """A question about time with the length of its video: the annotated one, else the decoded one.

    If the video cannot be decoded, the end of the question's last annotated interval counts as its length.
    """
    times_s = [span.end_s for span in question.spans] or [float(time[1]) for time in STAMP.finditer(question.answer)]
    if question.duration_s is not None or not (times_s or question.absent):
        return question
    return replace(question, duration_s=decoded_s or max(times_s, default=0) or None)


class _Log:
    """A file of samples that grows as answers come. Each of several processes writes its own; `gather` merges them."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.count = count  # of all questions
        self.own_path = path if processes.count() == 1 else path.with_name(f"{path.stem}.part{processes.rank()}.jsonl")
        self.answered: dict[str, Sample] = {}
        with processes.main_first():
            for file in self._files():
                if processes.is_main():
                    drop_half_line(file)
            self._read()
        processes.wait()  # no process may write before all have read

    def _files(self) -> list[Path]:
        """The merged file and those of single processes, without missing and empty ones."""
        files = [self.path, *sorted(self.path.parent.glob(f"{self.path.stem}.part*.jsonl"))]
        return [file for file in files if file.exists() and file.stat().st_size]

    def _read(self) -> None:
        self.answered = {sample.question_id: sample for file in self._files() for sample in read_samples(file)}

    def gather(self, questions: Sequence[Question]) -> None:
        """Merges the files of all processes into one, in the order of the questions."""
        processes.wait()
        parts = [file for file in self._files() if file != self.path]
        if parts or processes.count() > 1:
            self._read()
            processes.wait()
            if processes.is_main():
                asked = [question.question_id for question in questions if question.question_id in self.answered]
                ordered_ids = dict.fromkeys([*asked, *self.answered])
                write_text(self.path, "".join(_line(self.answered[question_id]) for question_id in ordered_ids))
                for part in parts:
                    part.unlink()
        processes.wait()

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer in the file.

        Raises:
            InputError: if the file has the answer to another question of the same name.
        """
        for question in questions:
            sample, spans = self.answered.get(question.question_id), question.truth().spans
            other_truth = sample and (sample.absent != question.absent or (spans and sample.truth_spans != spans))
            if sample and (sample.question != question.question or other_truth):
                raise InputError(
                    f"{self.path} has an answer to another question named {question.question_id!r}: the annotations "
                    "have changed, so choose another --output"
                )
        return [question for question in questions if question.question_id not in self.answered]

    def write(self, samples: Iterable[Sample]) -> None:
        """Appends samples to this process's file."""
        new = {sample.question_id: replace(sample, of=self.count) for sample in samples}
        append_text(self.own_path, "".join(map(_line, new.values())))
        self.answered |= new

    def samples(self, questions: Sequence[Question]) -> list[Sample]:
        """The answered ones of these questions, in their order."""
        return [self.answered[question.question_id] for question in questions if question.question_id in self.answered]


def _line(sample: Sample) -> str:
    return json.dumps(sample.to_json(), ensure_ascii=False) + "\n"


def scores_of(
    samples: Sequence[Sample], shuffled: Sequence[Sample], fit: Sequence[Question], seed: int = 0
) -> dict[str, Any]:
    """All scores with their baselines; see `mmllm.evaluation.score.score_samples`.

    If answers about shuffled videos are given, also their `shuffled_miou` and `shuffled_p_at_0.5`; the first also for
    each family and part of the data.
    """
    baseline = BlindBaseline.fit([Sample.asked(question) for question in fit] if fit else samples)
    scores = score_samples(samples, baseline, seed=seed)
    scores["baselines_fitted_on"] = "the training questions" if fit else "the scored questions"
    if shuffled:
        timed = [sample for sample in shuffled if sample.truth_spans]
        scores["shuffled_miou"] = over_videos(timed, sample_iou)
        scores["shuffled_p_at_0.5"] = over_videos(timed, lambda sample: float(reaches(sample_iou(sample), 0.5)))
        for family, row in scores["families"].items():
            row["shuffled_miou"] = over_videos([sample for sample in timed if sample.family == family], sample_iou)
        for part, row in scores.get("groups", {}).items():
            row["shuffled_miou"] = over_videos([sample for sample in timed if sample.group == part], sample_iou)
    return scores
