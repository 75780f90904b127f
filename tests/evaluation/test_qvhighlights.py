"""Answers in QVHighlights' form have the scores of the released evaluation; every fault of a file is named.

`tests/data/qvhighlights` has made-up rows. The numbers beside them are what the released code (moment_detr, revision
b7e553a, `standalone_eval/eval.py`) prints for these rows.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.evaluation.metrics import temporal_scores
from mmllm.evaluation.qvhighlights import read_submission
from mmllm.evaluation.saliency_metrics import RATINGS, Highlights, highlight_scores

MADE_UP = Path(__file__).parents[1] / "data" / "qvhighlights"
PUBLISHED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "qvhighlights"
RELEASED = {
    "r1_at_0.5": 50.0,
    "r1_at_0.7": 41.67,
    "map": 43.42,
    "map_at_0.5": 58.33,
    "map_at_0.75": 43.75,
    "map_long": 61.25,
    "map_middle": 33.33,
    "map_short": 33.5,
    "highlight_map_fair": 51.35,
    "hit1_fair": 66.67,
    "highlight_map_good": 41.05,
    "hit1_good": 66.67,
    "highlight_map_very_good": 22.55,
    "hit1_very_good": 41.67,
}
RELEASED_EXAMPLE = {
    "r1_at_0.5": 53.94,
    "r1_at_0.7": 34.84,
    "map": 32.2,
    "map_at_0.5": 54.96,
    "map_at_0.75": 31.01,
    "map_long": 41.11,
    "map_middle": 32.3,
    "map_short": 3.28,
    "highlight_map_fair": 67.77,
    "hit1_fair": 66.45,
    "highlight_map_good": 58.09,
    "hit1_good": 64.45,
    "highlight_map_very_good": 35.65,
    "hit1_very_good": 55.55,
}
"""Of `sample_val_preds_metrics_raw.json` beside the released code: its scores of `sample_val_preds.jsonl`."""


def in_percent(predictions, truth, keys):
    submission = read_submission(predictions, truth)
    scores = {**temporal_scores(submission.samples, resamples=1), **highlight_scores(submission.highlights)}
    return {key: round(100 * scores[key], 2) for key in keys}


def test_made_up_answers_have_the_released_scores():
    assert in_percent(MADE_UP / "predictions.jsonl", MADE_UP / "truth.jsonl", RELEASED) == RELEASED


def test_the_released_example_has_its_released_scores():
    if not (PUBLISHED / "sample_val_preds.jsonl").exists():
        pytest.skip("the released example is not beside the repository")
    files = (PUBLISHED / name for name in ("sample_val_preds.jsonl", "highlight_val_release.jsonl"))
    assert in_percent(*files, RELEASED_EXAMPLE) == RELEASED_EXAMPLE


def plain_highlight_map(question, least):
    """Mean, over persons, of the mean over worthy clips of the best precision at or behind their place."""
    scores = np.zeros(len(question.ratings))
    scores[: len(question.predicted)] = question.predicted[: len(scores)]
    order, means = np.argsort(-scores), []
    for person in question.ratings.T:
        worthy = (person >= least)[order]
        precision = [worthy[: rank + 1].mean() for rank in range(len(worthy))]
        means.append(np.mean([max(precision[i:]) for i in np.flatnonzero(worthy)]) if worthy.any() else 0.0)
    return np.mean(means)


def test_highlights_are_those_of_a_plain_scorer():
    generator = np.random.default_rng(3)
    questions = [
        Highlights(predicted=generator.permutation(clips).astype(float), ratings=generator.integers(0, 5, (clips, 3)))
        for clips in (4, 9, 30)
    ]
    scores = highlight_scores(questions)
    for name, least in RATINGS.items():
        hits = [(question.ratings[question.predicted.argmax()] >= least).any() for question in questions]
        assert scores[f"hit1_{name}"] == np.mean(hits)
        expected = np.mean([plain_highlight_map(question, least) for question in questions])
        assert scores[f"highlight_map_{name}"] == pytest.approx(expected)


def test_clips_with_equal_scores_come_together():
    worth = np.array([[4], [0], [0], [4]])
    equal = Highlights(predicted=np.zeros(4), ratings=worth)
    assert highlight_scores([equal])["highlight_map_good"] == 0.5
    all_worth = Highlights(predicted=np.zeros(2), ratings=np.full((2, 1), 4))
    assert highlight_scores([all_worth])["highlight_map_good"] == 1
    behind_the_end = Highlights(predicted=np.array([0.0, 0, 0, 0, 9]), ratings=worth)
    assert highlight_scores([behind_the_end])["hit1_good"] == 0
    assert set(highlight_scores([]).values()) == {None}


ANSWER = {"qid": 0, "pred_relevant_windows": [[0, 4, 0.5], [4, 8, 0.9]], "pred_saliency_scores": [1, 0.5, 2]}
TRUTH = {
    "qid": 0,
    "query": "Rain",
    "vid": "a",
    "duration": 8,
    "relevant_windows": [[4, 8]],
    "relevant_clip_ids": [2, 3],
    "saliency_scores": [[1, 2], [3, 4]],
}


@pytest.fixture
def files(tmp_path):
    def write(answers=(ANSWER,), truths=(TRUTH,)):
        for name, rows in (("answers", answers), ("truth", truths)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "answers.jsonl", tmp_path / "truth.jsonl"

    return write


def test_spans_are_ranked_by_their_scores(files):
    (sample,) = read_submission(*files()).samples
    assert [span.to_json() for span in sample.prediction_spans] == [[4, 8], [0, 4]]
    assert sample.question.startswith('Which parts of the video show "rain"?')


def test_a_file_may_have_windows_or_scores_alone(files):
    windows = {key: value for key, value in ANSWER.items() if key != "pred_saliency_scores"}
    submission = read_submission(*files([windows]))
    assert (len(submission.samples), len(submission.highlights)) == (1, 0)
    scores = {key: value for key, value in ANSWER.items() if key != "pred_relevant_windows"}
    submission = read_submission(*files([scores]))
    assert (len(submission.samples), len(submission.highlights)) == (0, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"qid": 3}, "answers.jsonl, line 1: .*truth.jsonl has no query 3"),
        ({"qid": None}, "line 1: 'qid' must be a number or a text"),
        ({"pred_relevant_windows": [[0, 4]]}, r"line 1: a window must be a start, an end and a score, not \[0, 4\]"),
        ({"pred_relevant_windows": [[4, 0, 1]]}, "line 1: a span needs finite seconds with start <= end"),
        ({"pred_relevant_windows": [[0, 4, "high"]]}, "line 1: a score must be a number of seconds, not 'high'"),
        ({"pred_relevant_windows": None}, "line 1: 'pred_relevant_windows' must be a list"),
        ({"pred_saliency_scores": []}, "line 1: the scores of clips must be a list of at least one finite number"),
        ({"pred_saliency_scores": ["x"]}, "line 1: the score of a clip must be a number, not 'x'"),
    ],
)
def test_a_bad_answer_is_named(files, change, reason):
    with pytest.raises(InputError, match=reason):
        read_submission(*files([{**ANSWER, **change}]))


def test_each_query_has_one_answer(files):
    with pytest.raises(InputError, match="line 2: query 0 has a second answer"):
        read_submission(*files([ANSWER, ANSWER]))
    with pytest.raises(InputError, match="1 of 2 queries have no answer, the first is 1"):
        read_submission(*files([ANSWER], [TRUTH, {**TRUTH, "qid": 1}]))
    with pytest.raises(InputError, match="line 1: an answer needs 'pred_relevant_windows' or 'pred_saliency_scores'"):
        read_submission(*files([{"qid": 0}]))
    half = {key: value for key, value in ANSWER.items() if key != "pred_saliency_scores"}
    with pytest.raises(InputError, match="only 1 of 2 answers have 'pred_saliency_scores'"):
        read_submission(*files([ANSWER, {**half, "qid": 1}], [TRUTH, {**TRUTH, "qid": 1}]))
    answers, truth = files()
    answers.write_text('{"broken}')
    with pytest.raises(InputError, match=r"answers.jsonl, line 1: not JSON"):
        read_submission(answers, truth)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"relevant_clip_ids": [2, 4]}, r"line 1: 'relevant_clip_ids' must be numbers from 0 to 3: \[2, 4\]"),
        ({"saliency_scores": [[1, 2]]}, "line 1: 'saliency_scores' must have a list for each of the 2 clips"),
        ({"saliency_scores": [[1, 2], [1]]}, "line 1: 'saliency_scores' must have a list for each of the 2 clips"),
        ({"relevant_windows": [[8, 4]]}, "line 1: the interval .8, 4. ends before it starts"),
    ],
)
def test_a_bad_truth_is_named(files, change, reason):
    with pytest.raises(InputError, match=reason):
        read_submission(*files(truths=[{**TRUTH, **change}]))
