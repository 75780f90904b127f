"""`mmllm score`: scores a file of answered questions again, without a model."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmllm.errors import InputError
from mmllm.evaluation.baselines import WHOLE_VIDEO, BlindBaseline
from mmllm.evaluation.metrics import (
    coverage_scores,
    families,
    over_videos,
    sample_iou,
    temporal_scores,
    text_scores,
)
from mmllm.evaluation.samples import Sample, read_samples
from mmllm.evaluation.span_metrics import reaches
from mmllm.fields import require_seed

COLUMNS = {
    "mIoU": "miou",
    "P@0.3": "p_at_0.3",
    "P@0.5": "p_at_0.5",
    "P@0.7": "p_at_0.7",
    "fallback": "fallback_rate",
    "missed": "miss_rate",
    "false alarm": "false_alarm_rate",
    "const": "best_constant_miou",
    "whole": "whole_video_miou",
    "text": "text_accuracy",
    "usual": "most_frequent_text_accuracy",
}
RANKED = {
    "mAP": "map",
    "mAP@0.5": "map_at_0.5",
    "mAP@0.75": "map_at_0.75",
    "R1@0.3": "r1_at_0.3",
    "R1@0.5": "r1_at_0.5",
    "R1@0.7": "r1_at_0.7",
}
"""What is said of questions with several true spans."""
MOST_LISTED = 10
"""At most so many rows that cannot be scored are printed."""
CAPTION = (
    "fallback: answers without two times. missed: answers that an event does not happen, although it does; false "
    "alarm: the other way round. Without looking at the video: mIoU of the best constant interval of each "
    "family (const) and of the whole video (whole), accuracy of each family's most frequent text (usual)."
)


def score_samples(samples: Sequence[Sample], baseline: BlindBaseline, *, seed: int = 0) -> dict[str, Any]:
    """All scores of answered questions, with those of baselines that do not look at the video.

    The keys are those of `coverage_scores`, `temporal_scores` and `text_scores`, then `whole_video_miou`,
    `best_constant_miou` (each question answered by its family's constant), `best_constant_overall_miou` (one constant
    for all), each also as `..._p_at_0.5`, and `most_frequent_text_accuracy`. `families` has all of these for each
    family.

    Raises:
        InputError: if there are no samples.
    """
    if not samples:
        raise InputError("there are no answered questions to score")
    return {
        **_scores(samples, baseline, seed),
        "families": {family: _scores(group, baseline, seed) for family, group in families(samples).items()},
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


def score_file(path: Path, fit: Path | None = None, *, seed: int = 0, expected: int | None = None) -> dict[str, Any]:
    """Scores of a file of samples. `expected` is the number of questions that were asked, `missing` how many of them
    the file lacks; both are None if nobody says how many there should be.

    Args:
        path: JSON lines as the evaluation writes them. If a question occurs twice, its last answer counts;
            `duplicates` is the number of answers that do not count.
        fit: samples to fit the blind baselines to. If None, they are fitted to the scored questions, which favours
            the baselines.
        seed: of the bootstrap intervals.
        expected: number of questions that were asked; by default the number that `mmllm eval` wrote into the file.

    Raises:
        InputError: if a file cannot be read or has no samples.
    """
    lines = read_samples(path)
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
) -> int:
    """Score a file of answered questions again, without a model; exit code 3 if questions are missing in it.

    Args:
        file: JSON lines that `mmllm eval` wrote, one answered question a line.
        fit: answered questions of the training set, to fit the blind baselines to; default: the scored questions.
        judge_url: address of an OpenAI-compatible interface whose model rates explanations, such as
            http://localhost:8000/v1. The key is read from MMLLM_JUDGE_KEY or OPENAI_API_KEY. Replies are stored in
            `judge/` beside the file.
        judge_model: name of the judge's model there.
        judge_captions: captions of the videos in ActivityNet Captions' schema. The judge reads them.
        json: print all scores as one JSON object instead of a table.
        seed: of the bootstrap intervals.
        expected: number of questions that were asked; default: the number that `mmllm eval` wrote into the file.
    """
    require_seed(seed, "--seed")
    scores = score_file(file, fit, seed=seed, expected=expected)
    if judge_url is not None or judge_model is not None or judge_captions is not None:
        from mmllm.evaluation.judge import Judge

        judge = Judge.of(judge_url, judge_model, judge_captions, file.parent)
        samples = list({sample.question_id: sample for sample in read_samples(file)}.values())
        scores["judge"] = None if judge is None else judge.judge(samples, file.with_name("judged.jsonl"))
    code = 3 if scores["missing"] else 0
    if json:
        print(json_text.dumps(scores, indent=2, ensure_ascii=False))
        return code
    from rich.console import Console

    console = Console()
    console.print(score_table(scores))
    console.print(score_summary(scores), highlight=False, markup=False)
    return code


def score_table(scores: dict[str, Any]) -> Any:
    """A table of rich, in per cent, with a row for each family and one for all. Columns without a value are omitted."""
    from rich import box
    from rich.table import Table

    columns = {title: key for title, key in COLUMNS.items() if scores.get(key) is not None}
    if not scores.get("miss_rate"):
        columns.pop("missed", None)
    table = Table(title="Scores in %", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.caption, table.caption_justify = CAPTION, "left"
    table.add_column("family", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for family, row in {**scores["families"], "all": scores}.items():
        cells = ("-" if row[key] is None else f"{100 * row[key]:.1f}" for key in columns.values())
        table.add_row(family, str(row["questions"]), *cells, style="bold" if row is scores else None)
    return table


def score_summary(scores: dict[str, Any]) -> str:
    """Text below the table: interval, spread of trials, explanations, number of answers, bad rows, videos."""
    parts = []
    if scores["miou_interval"] is not None:
        low, high = (100 * end for end in scores["miou_interval"])
        interval = f"mIoU {100 * scores['miou']:.1f}: {low:.1f} to {high:.1f} in 95 % of resampled videos"
        ceiling = scores.get("ceiling_miou")
        limit = "" if ceiling is None else f"; at most {100 * ceiling:.1f} as this model writes times"
        parts.append(f"{interval}{limit}.")
    if trials := scores.get("trials"):
        spread = {title: 100 * trials["spread"][key] for title, key in COLUMNS.items() if key in trials["spread"]}
        listed = ", ".join(f"{title} {spread[title]:.1f}" for title in ("mIoU", "P@0.5", "text") if title in spread)
        parts.append(f"Mean of {trials['count']} trials at temperature {trials['temperature']}; spread: {listed}.")
    if scores.get("set_questions"):
        ranked = ", ".join(f"{title} {100 * scores[key]:.1f}" for title, key in RANKED.items())
        parts.append(f"Ranked spans of {scores['temporal_questions']:g} questions: {ranked}.")
    if scores.get("absent_questions"):
        parts.append(
            f"False alarms: {_percent(scores['false_alarm_rate'])} in {scores['absent_questions']:g} questions about "
            f"what does not happen; missed: {_percent(scores['miss_rate'])} of what does. mIoU of sets, both kinds "
            f"together: {100 * scores['set_miou']:.1f}."
        )
    if scores["explanation_questions"]:
        parts.append(
            f"Explanations: word F1 {100 * scores['explanation_f1']:.1f}, "
            f"ROUGE-L {100 * scores['explanation_rouge_l']:.1f}, {_judged(scores.get('judge'))}."
        )
    parts.append(f"{scores['scored']:g} of {scores['questions']} questions were answered")
    summary = " ".join(parts) + ("; the others count as 0." if scores["failed"] else ".")
    if missing := scores.get("missing"):
        difference = f"{missing} of the {scores['expected']} questions that were asked are not in the file"
        more = f"The file has {-missing} questions more than the {scores['expected']} that were expected"
        summary += f"\n{difference if missing > 0 else more}; the scores are those of the questions in it."
    if scores.get("bad_rows"):
        summary += f" {scores['bad_rows']} rows of the annotations cannot be scored."
        summary += "".join(f"\nLeft out: {reason}" for reason in scores.get("left_out", [])[:MOST_LISTED])
        more_rows = scores["bad_rows"] - MOST_LISTED
        summary += f"\nand {more_rows} more, in metrics.json" if more_rows > 0 else ""
    for vid, reason in (scores.get("set_aside") or {}).items():
        summary += f"\nSet aside: {vid}: {reason}"
    return summary


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f} %"


def _judged(judge: dict[str, Any] | None) -> str:
    if judge is None:
        return "not judged (--judge-url and --judge-model)"
    if judge["score"] is None:
        return f"no rating by {judge['model']} in {judge['unparseable']} replies"
    return (
        f"judged by {judge['model']} {100 * judge['score']:.1f} "
        f"({judge['rated']:g} rated, {judge['unparseable']:g} unparseable)"
    )
