"""`mmllm score`: scores a file of answered questions without a model, also one that another tool wrote."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.errors import InputError
from mmllm.evaluation.baselines import WHOLE_VIDEO, BlindBaseline
from mmllm.evaluation.imported import AnswerReader, Answers, Source, read_answers
from mmllm.evaluation.metrics import (
    coverage_scores,
    families,
    groups,
    over_videos,
    sample_iou,
    temporal_scores,
    text_scores,
)
from mmllm.evaluation.saliency_metrics import highlight_scores
from mmllm.evaluation.samples import Sample, read_samples, write_samples
from mmllm.evaluation.span_metrics import reaches
from mmllm.fields import require_seed


def score_samples(samples: Sequence[Sample], baseline: BlindBaseline, *, seed: int = 0) -> dict[str, Any]:
    """All scores of answered questions, with those of baselines that do not look at the video.

    The keys are those of `coverage_scores`, `temporal_scores` and `text_scores`, then `whole_video_miou`,
    `best_constant_miou` (each question answered by its family's constant), `best_constant_overall_miou` (one constant
    for all), each also as `..._p_at_0.5`, and `most_frequent_text_accuracy`. `families` has all of these for each
    family; `groups` for each part of the data set, if it has parts.

    Raises:
        InputError: if there are no samples.
    """
    if not samples:
        raise InputError("there are no answered questions to score")
    parts = groups(samples)
    return {
        **_scores(samples, baseline, seed),
        "families": {family: _scores(group, baseline, seed) for family, group in families(samples).items()},
        **({"groups": {part: _scores(group, baseline, seed) for part, group in parts.items()}} if parts else {}),
    }


def _scores(samples: Sequence[Sample], baseline: BlindBaseline, seed: int) -> dict[str, Any]:
    timed = [sample for sample in samples if sample.truth_spans and sample.duration_s is not None]
    texts = [sample for sample in samples if not sample.timed]
    scores = {**coverage_scores(samples), **temporal_scores(samples, seed=seed)}
    blind_answers = {
        "whole_video": WHOLE_VIDEO.answer,
        "best_constant": baseline.answer,
        "best_constant_overall": baseline.overall.answer,
    }
    for name, answer in blind_answers.items():
        answered = [answer(sample) for sample in timed]
        scores[f"{name}_miou"] = over_videos(answered, sample_iou)
        scores[f"{name}_p_at_0.5"] = over_videos(answered, lambda sample: float(reaches(sample_iou(sample), 0.5)))
    blind_text_scores = text_scores([baseline.answer(sample) for sample in texts])
    return {**scores, **text_scores(samples), "most_frequent_text_accuracy": blind_text_scores["text_accuracy"]}


def score_file(
    path: Path,
    fit: Path | None = None,
    *,
    seed: int = 0,
    expected: int | None = None,
    answers: Answers | None = None,
) -> dict[str, Any]:
    """Scores of a file of samples. `expected` is the number of questions that were asked, `missing` how many of them
    the file lacks; both are None if nobody says how many there should be.

    Args:
        path: JSON lines as the evaluation writes them. If a question occurs twice, its last answer counts;
            `duplicates` is the number of answers that do not count.
        fit: samples to fit the blind baselines to. If None, they are fitted to the scored questions, which favours
            the baselines.
        seed: of the bootstrap intervals.
        expected: number of questions that were asked; by default the number that `mmllm eval` wrote into the file.
        answers: what the file holds, if it is not one of `mmllm eval`. Scores of highlights are added if it has any.

    Raises:
        InputError: if a file cannot be read or has no samples.
    """
    lines = read_samples(path) if answers is None else answers.samples
    samples = list({sample.question_id: sample for sample in lines}.values())
    if not samples:
        raise InputError(f"{path}: has no answered questions")
    scores = score_samples(samples, BlindBaseline.fit(samples if fit is None else read_samples(fit)), seed=seed)
    fitted_on = "the scored questions" if fit is None else str(fit)
    if expected is None:
        expected = max((sample.of for sample in lines if sample.of is not None), default=None)
    return {
        **scores,
        "baselines_fitted_on": fitted_on,
        "duplicates": len(lines) - len(samples),
        "expected": expected,
        "missing": None if expected is None else expected - len(samples),
        **(highlight_scores(answers.highlights) if answers is not None and answers.highlights else {}),
    }


def score(
    file: Annotated[Path, tyro.conf.Positional],
    fit: Path | None = None,
    judge_url: str | None = None,
    judge_model: str | None = None,
    judge_captions: Path | None = None,
    json: bool = False,
    seed: int = 0,
    expected: int | None = None,
    source: Annotated[Source, tyro.conf.arg(name="from")] = "mmllm",
    reader: AnswerReader = "mmllm",
    annotations: Path | None = None,
    samples: Path | None = None,
) -> int:
    """Score a file of answered questions without a model; exit code 3 if questions are missing in it.

    Args:
        file: JSON lines that `mmllm eval` wrote, one answered question a line; or what `--from` says.
        fit: answered questions of the training set, to fit the blind baselines to; default: the scored questions.
        judge_url: address of an OpenAI-compatible interface whose model rates explanations, such as
            http://localhost:8000/v1. The key is read from MMLLM_JUDGE_KEY or OPENAI_API_KEY. Replies are stored in
            `judge/` beside the file.
        judge_model: name of the judge's model there.
        judge_captions: captions of the videos in ActivityNet Captions' schema. The judge reads them.
        json: print all scores as one JSON object instead of a table.
        seed: of the bootstrap intervals.
        expected: number of questions that were asked; default: the number that `mmllm eval` wrote into the file.
        source: what wrote the file: lmms-eval (`*_samples_*.jsonl`), vlmevalkit (.xlsx, .tsv, .csv or .json), or
            qvhighlights, the form of answers that its evaluation reads.
        reader: what reads times in the answers of lmms-eval and VLMEvalKit: ours, or as lmms-eval or TimeLens do it.
        annotations: of lmms-eval and VLMEvalKit an annotation file or table (`id`, `length`) that says how long the
            videos are, so that answers are clipped to them; of qvhighlights the file with the truth.
        samples: also write the answers as `mmllm eval` does, to this file.
    """
    require_seed(seed, "--seed")
    answers = read_answers(file, source, reader, annotations)
    scores = score_file(file, fit, seed=seed, expected=expected, answers=answers)
    if samples is not None:
        _write_samples(samples, answers.samples)
    if judge_url is not None or judge_model is not None or judge_captions is not None:
        from mmllm.evaluation.judge import Judge

        judge = Judge.of(judge_url, judge_model, judge_captions, file.parent)
        each = list({sample.question_id: sample for sample in answers.samples}.values())
        scores["judge"] = None if judge is None else judge.judge(each, file.with_name("judged.jsonl"))
    code = 3 if scores["missing"] else 0
    if json:
        print(json_text.dumps(scores, indent=2, ensure_ascii=False))
        return code
    from rich.console import Console

    from mmllm.evaluation.report import score_summary, score_table

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False, markup=False)
    return code


def _write_samples(file: Path, samples: Sequence[Sample]) -> None:
    """Writes samples that can be read again.

    Raises:
        InputError: if the length of a video is not known.
    """
    unknown = [sample.vid for sample in samples if sample.timed and sample.duration_s is None]
    if unknown:
        raise InputError(
            f"--samples {file}: the length of {len(set(unknown))} videos is not known, such as {unknown[0]}: "
            "give a file that says it by --annotations"
        )
    write_samples(file, samples)
