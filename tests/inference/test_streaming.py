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
    parts = list(stream(untrained_qa, encoded, QUESTION))
    assert parts[-1].answer == untrained_qa.ask(encoded, QUESTION)
    assert [part.tokens for part in parts[:-1]] == list(range(1, len(parts)))
    assert all(part.answer is None for part in parts[:-1])
    assert 0 < parts[0].first_token_s <= parts[-1].seconds
    assert parts[-1].tokens_per_s > 0
    assert "<t" not in parts[-1].text


def test_an_answer_that_never_ends_is_cut(untrained_qa, encoded):
    last = list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=5, eos_token_id=-1))[-1]
    assert (last.tokens, last.cut) == (5, "tokens")


def test_an_answer_that_takes_too_long_is_cut(untrained_qa, encoded):
    last = list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1, limit_s=0.0))[-1]
    assert last.cut == "time"
    assert last.tokens < 400


def test_stopping_keeps_the_text_so_far(untrained_qa, encoded):
    parts = []

    def stopped():
        time.sleep(0.01)  # slows generation, so that a busy machine stops it before the last token
        return len(parts) >= 3

    for part in stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1, stopped=stopped):
        parts.append(part)
    assert parts[-1].cut == "stopped"
    assert parts[-1].answer is not None
    assert 3 <= parts[-1].tokens < 400


def test_closing_the_stream_early_ends_its_thread(untrained_qa, encoded):
    answer = stream(untrained_qa, encoded, QUESTION, max_new_tokens=400, eos_token_id=-1)
    next(answer)
    answer.close()
    time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "mmllm-generate"]


def test_errors_of_generate_reach_the_caller(untrained_qa, encoded):
    with pytest.raises(ValueError, match="max_new_tokens"):
        list(stream(untrained_qa, encoded, QUESTION, max_new_tokens=-1))
