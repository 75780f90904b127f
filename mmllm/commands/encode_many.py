"""`mmllm encode DATA --output DIR`: features of many videos, or answers to their questions, shard by shard.

Features    DIR/ENCODER/*.safetensors, a file for each video; DIR/ENCODER/done/SHARD.json when a shard is done
Answers     DIR/parts/SHARD.jsonl, DIR/samples.jsonl when all are done, DIR/answered_by.json (the model)

Several processes (torchrun) share the shards. A command that was stopped goes on with the shards that are not done.
"""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmllm.datasets.records import Question
from mmllm.datasets.shards import is_shards
from mmllm.errors import InputError, PartialFailure
from mmllm.evaluation.answering_many import AnswerQuestions
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.runtime import processes
from mmllm.runtime.files import make_folder, read_json, without_paths, write_json, write_text
from mmllm.runtime.progress import Progress
from mmllm.times.answers import Answer, Span
from mmllm.train.encoding import EncodeFeatures
from mmllm.video.tar_members import status_of, tar_of

ANNOTATIONS = (".json", ".jsonl", ".csv", ".txt", ".gz")
PART_VIDEOS = 32
"""Videos of a part of an annotation file, which has no shards."""
BATCH_VIDEOS = 4


def is_many(data: Path) -> bool:
    """Whether a source names many videos: a folder of shards, or an annotation file by its suffix."""
    return is_shards(data) or (data.is_file() and data.suffix.lower() in ANNOTATIONS)


def encode_many(
    data: Path,
    output: Path,
    model: str,
    *,
    answers: bool = False,
    options: Mapping[str, Any] | None = None,
    max_new_tokens: int = 64,
    workers: int = 1,
) -> dict[str, Any]:
    """Writes features or answers of all videos and returns counts.

    Args:
        data: a folder of shards, or an annotation file.
        output: the folder.
        model: folder or hub id.
        answers: answers in place of features.
        options: of `VideoQA.from_pretrained`.
        max_new_tokens: most tokens of an answer.
        workers: processes that decode.

    Raises:
        InputError: if there is no question about a video, or the folder has answers of another model or other data.
        ConfigError: if the model's features cannot be kept.
    """
    if output.suffix == ".kv" or output.is_file():
        raise InputError(f"--output {output}: must be a folder, for {data} has many videos")
    parts = _parts(data)
    processes.wait()
    if answers:
        return _answers(parts, make_folder(output), AnswerQuestions(model, max_new_tokens, **(options or {})))
    return _features(parts, EncodeFeatures(model, make_folder(output), workers, **(options or {})))


def _parts(data: Path) -> dict[str, list[Question]]:
    """Name of each shard, or of each part of an annotation file -> its questions, in order.

    Raises:
        InputError: if a question has no video, or there is none.
    """
    from mmllm.datasets.formats import BESIDE, format_of, questions_of, read_annotations

    form = format_of(data)
    folder = None if form in BESIDE else data.parent / "videos"
    rows = questions_of(read_annotations(data, folder, form))
    if not rows.items:
        raise InputError(f"{data}: has no question about a video{f': {rows.bad[0]}' if rows.bad else ''}")
    order: dict[Path, int] = {}
    parts: dict[str, list[Question]] = {}
    for question in rows.items:
        if question.video is None:
            raise InputError(f"{data}: question {question.question_id!r} has no video")
        tar = tar_of(question.video)
        number = order.setdefault(question.video, len(order)) // PART_VIDEOS
        name = f"{data.name.split('.')[0]}-{number:06d}" if tar is None else tar.stem
        parts.setdefault(name, []).append(question)
    return parts


def _features(parts: Mapping[str, Sequence[Question]], encode: EncodeFeatures) -> dict[str, Any]:
    done = make_folder(encode.cache.folder / "done")
    names = list(parts)
    with Progress("encode shards", len(names), "shards", shown=processes.is_main()) as progress:
        for name in processes.share(names):
            videos = list(dict.fromkeys(str(question.video) for question in parts[name]))
            sizes = {video: status_of(Path(video))[0] for video in videos}
            file = done / f"{name}.json"
            if not file.exists() or read_json(file, "delete it").get("videos") != sizes:
                failed: dict[str, str] = {}
                for start in range(0, len(videos), BATCH_VIDEOS):
                    batch = encode({"video": np.array(videos[start : start + BATCH_VIDEOS], dtype=object)})
                    failed |= {video: why for video, why in zip(batch["video"], batch["error"], strict=True) if why}
                write_json(file, {"videos": sizes, "failed": failed})
            progress.advance()
    processes.wait()
    records = [read_json(done / f"{name}.json", "delete it") for name in names]
    return {
        "folder": str(encode.cache.folder),
        "shards": len(records),
        "videos": sum(len(record["videos"]) for record in records),
        "failed": {video: why for record in records for video, why in record["failed"].items()},
    }


def _answers(parts: Mapping[str, Sequence[Question]], folder: Path, answer: AnswerQuestions) -> dict[str, Any]:
    _same_model(folder / "answered_by.json", {**answer.qa.identity(), "max_new_tokens": answer.max_new_tokens})
    files = {name: make_folder(folder / "parts") / f"{name}.jsonl" for name in parts}
    total = sum(map(len, parts.values()))
    with Progress("answer shards", len(parts), "shards", shown=processes.is_main()) as progress:
        for name in processes.share(list(parts)):
            if not files[name].exists():
                samples = [replace(sample, of=total) for sample in _answered(answer, parts[name])]
                write_text(files[name], "".join(_line(sample) for sample in samples))
            progress.advance()
    processes.wait()
    samples = []
    for name, questions in parts.items():
        written = read_samples(files[name])
        if [(each.question_id, each.question) for each in written] != [(q.question_id, q.question) for q in questions]:
            raise InputError(f"{files[name]}: has answers to other questions: choose another --output")
        samples += written
    if processes.is_main():
        write_text(folder / "samples.jsonl", "".join(map(_line, samples)))
    failed = {sample.vid: sample.error for sample in samples if sample.error}
    vids = {question.video for questions in parts.values() for question in questions}
    counts = {"shards": len(parts), "videos": len(vids), "questions": total}
    return {"folder": str(folder), **counts, "failed": failed}


def _answered(answer: AnswerQuestions, questions: Sequence[Question]) -> list[Sample]:
    """The answered questions of a shard."""
    videos = list(dict.fromkeys(question.video for question in questions))
    samples: dict[str, Sample] = {}
    for start in range(0, len(videos), BATCH_VIDEOS):
        group = [question for question in questions if question.video in videos[start : start + BATCH_VIDEOS]]
        histories = np.empty(len(group), dtype=object)
        for row, question in enumerate(group):
            histories[row] = question.history
        lengths_s = [np.nan if question.duration_s is None else question.duration_s for question in group]
        batch = answer({
            "video": np.array([str(question.video) for question in group], dtype=object),
            "question": np.array([question.question for question in group], dtype=object),
            "system": np.array([question.system for question in group], dtype=object),
            "audio": np.array([question.audio for question in group], dtype=object),
            "duration_s": np.array(lengths_s),
            "history": histories,
        })  # fmt: skip
        for row, question in enumerate(group):
            samples[question.question_id] = _sample(question, {name: column[row] for name, column in batch.items()})
    return [samples[question.question_id] for question in questions]


def _sample(question: Question, row: Mapping[str, Any]) -> Sample:
    """A question with the answer of one row."""
    length_s = None if np.isnan(row["duration_s"]) else float(row["duration_s"])
    ends_s = [span.end_s for span in question.truth().spans]
    sample = Sample.asked(replace(question, duration_s=question.duration_s or length_s or max(ends_s, default=None)))
    if row["error"]:
        return sample.failed(str(row["error"]))
    spans = tuple(Span(*ends) for ends in row["spans"])
    return sample.answered(Answer(row["text"], spans, row["raw"], fallback=bool(row["fallback"])))


def _same_model(file: Path, identity: Mapping[str, Any]) -> None:
    """Notes which model answers; refuses a folder with answers of another one."""
    if file.exists() and without_paths(read_json(file, "choose another --output")) != without_paths(dict(identity)):
        raise InputError(f"{file.parent} holds answers of another model or other settings: choose another --output")
    processes.wait()
    if processes.is_main():
        write_json(file, dict(identity), indent=None)


def _line(sample: Sample) -> str:
    return json_text.dumps(sample.to_json(), ensure_ascii=False) + "\n"


def tell_many(done: Mapping[str, Any], json: bool) -> None:
    """Prints what was written.

    Raises:
        PartialFailure: if some videos could not be read.
    """
    if processes.is_main():
        counts = {name: count for name, count in done.items() if name not in ("folder", "failed")}
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(json_text.dumps(done, ensure_ascii=False) if json else f"{done['folder']}: {told}")
    if failed := done["failed"]:
        first = next(f"{video}: {why}" for video, why in failed.items())
        raise PartialFailure(f"{len(failed)} videos cannot be read; the first is {first}")
