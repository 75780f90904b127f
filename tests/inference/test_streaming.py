"""Answers word by word."""

import threading
import time

import pytest

from mmllm.inference.streaming import stream

QUESTION = "When does the red circle spin?"


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


def test_a_streamed_answer_is_the_one_that_is_given_at_once(untrained_qa, encoded):
    said = list(stream(untrained_qa, encoded, QUESTION))
    assert said[-1].answer == untrained_qa.ask(encoded, QUESTION)
    assert [one.tokens for one in said[:-1]] == list(range(1, len(said)))
    assert all(one.answer is None for one in said[:-1])
    assert 0 < said[0].first_token_s <= said[-1].seconds
    assert said[-1].tokens_per_s > 0
    assert "<t" not in said[-1].text


def test_an_answer_that_never_ends_is_cut(untrained_qa, encoded):
    last = list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=5, eos_token_id=-1))[-1]
    assert (last.tokens, last.cut) == (5, "tokens")


def test_an_answer_that_takes_too_long_is_cut(untrained_qa, encoded):
    last = list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1, limit_s=0.0))[-1]
    assert last.cut == "time"
    assert last.tokens < 400


def test_stopping_leaves_what_was_said(untrained_qa, encoded):
    said = []

    def stopped():
        time.sleep(0.01)  # between two tokens, so that a busy machine hears the third one before the last
        return len(said) >= 3

    for one in stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1, stopped=stopped):
        said.append(one)
    assert said[-1].cut == "stopped"
    assert said[-1].answer is not None
    assert 3 <= said[-1].tokens < 400


def test_who_leaves_in_the_middle_leaves_no_thread_behind(untrained_qa, encoded):
    answer = stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1)
    next(answer)
    answer.close()
    time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "mmllm-generate"]


def test_what_goes_wrong_while_generating_is_told(untrained_qa, encoded):
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=-1))
