"""Rewards are plain functions in TRL's form: they read times, compare sets, and give nothing to a guess."""

import math

import pytest

from mmllm.errors import InputError
from mmllm.reinforcement.rewards import REWARDS, format_reward, tiou_reward, wasserstein_1_reward


def given(*texts, truth=((2, 6),), duration_s=20.0, **others):
    count = len(texts)
    columns = {"spans": [truth] * count, "duration_s": [duration_s] * count, "question_id": ["q"] * count}
    return {"prompts": ["When?"] * count, "completions": list(texts), **columns, **others}


def test_iou_of_sets_from_texts():
    row = given(
        "From 2 s to 6 s.", "It happens 4 - 8 seconds.", "2 s - 3 s and 5 s - 6 s", "12 s to 14 s", "I cannot say."
    )
    assert tiou_reward(**row) == pytest.approx([1, 2 / 6, 2 / 4, 0, 0])


def test_the_empty_set_is_an_answer():
    never, wrong = "It does not happen.", "From 2 s to 6 s."
    assert tiou_reward(**given(never, wrong, truth=())) == [1, 0]
    assert wasserstein_1_reward(**given(never, wrong, truth=())) == [1, 0]
    assert tiou_reward(**given(never)) == wasserstein_1_reward(**given(never)) == [0]
    assert format_reward(**given(never, "Perhaps.", truth=())) == [1, 0]


def test_a_near_miss_has_more_than_a_far_one():
    near, far = wasserstein_1_reward(**given("7 s to 11 s", "15 s to 19 s"))
    assert near == pytest.approx(math.exp(-3 * 5 / 4))
    assert near > far > 0
    assert tiou_reward(**given("7 s to 11 s", "15 s to 19 s")) == [0, 0]


def test_the_whole_video_is_not_guessed_for_an_answer_without_times():
    whole, none = tiou_reward(**given("from 0 s to 20 s", "Yes."))
    assert whole == pytest.approx(4 / 20)
    assert none == 0


def test_form_is_rewarded_whatever_the_truth():
    assert format_reward(**given("9 s to 10 s", "6 s to 2 s", "2 s to 60 s", "soon")) == [1, 0.5, 0.5, 0]


def test_conversations_are_read_as_trl_gives_them():
    plain = [{"role": "assistant", "content": "From 2 s to 6 s."}]
    listed = [{"role": "assistant", "content": [{"type": "text", "text": "From 2 s to 6 s."}]}]
    asked = [{"role": "tool", "content": "From 2 s to 6 s."}, {"role": "assistant", "content": None}]
    assert tiou_reward(**given(plain, listed, asked)) == [1, 1, 0]


def test_spans_that_were_read_already_come_before_the_text():
    row = given("<t10> <t30>", "<t10>", "no", answered=[[[2, 6]], None, []])
    assert tiou_reward(**row) == [1, 0, 0]
    assert format_reward(**row) == [1, 0, 1]


def test_units():
    assert tiou_reward(**given("from 100 to 300", unit="permille")) == [1]
    assert tiou_reward(**given("from 100 to 300", "from 2 to 6", unit=["permille", "s"])) == [1, 1]


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_are_from_zero_to_one_and_one_for_each_completion(name):
    texts = ["2 s to 6 s", "0 s to 20 s", "12 s to 13 s", "nothing of the kind", ""]
    values = REWARDS[name](**given(*texts))
    assert len(values) == len(texts)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[[6, 2]]]}, "start <= end"),
        ({"spans": [[[1, 2, 3]]]}, r"a span is \[start_s, end_s\]"),
        ({"spans": []}, "one row of each column for each completion"),
        ({"duration_s": [20.0, 20.0]}, "one row of each column"),
        ({"answered": []}, "one row of each column"),
        ({"answered": [[[5, 1]]]}, "start <= end"),
        ({"unit": "hours"}, "no unit 'hours'"),
    ],
)
def test_bad_columns_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        tiou_reward(**{**given("2 s to 6 s"), **change})
