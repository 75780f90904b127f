"""Clients that leave, a queue that is full, an LLM that fails, and the end of the server."""

import contextlib
import json
import sys
import threading
import time

import httpx
import pytest
from running_server import about, asked, refused, served, until

from mmllm.app.confined_reading import WORKER, ConfinedReading
from mmllm.inference.own_prompts import OwnPrompts


@pytest.fixture
def slow(monkeypatch):
    """Makes the model say one word after another, slowly, without an end."""
    from transformers import LogitsProcessor

    generate = OwnPrompts.generate

    class Slow(LogitsProcessor):
        pause_s = 0.02

        def __init__(self, qa):
            self.word = qa.processor.tokenizer.convert_tokens_to_ids("the")

        def __call__(self, ids, scores):
            time.sleep(self.pause_s)
            scores[:] = -float("inf")
            scores[:, self.word] = 0.0
            return scores

    def slowly(self, prompts, **options):
        return generate(self, prompts, **options, logits_processor=[Slow(self.qa)])

    monkeypatch.setattr(OwnPrompts, "generate", slowly)
    return Slow


def metric(ready, name):
    """The value of a line of the metrics."""
    lines = [line for line in ready.answering.metrics.text().splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1]) if lines else 0.0


LONG = {"max_tokens": 400}


def test_a_client_that_leaves_a_stream_ends_its_answer(server, slow, short_clip):
    before = metric(server, 'mmllm_cancelled_total{reason="answering"}')
    body = {"model": "tiny", "messages": about(short_clip), "stream": True, **LONG}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert server.answering.under_way == 1
        until(lambda: server.answering.llm.running)  # its first line comes before the LLM begins
    left_s = time.monotonic()
    until(lambda: not server.answering.llm.running, 5)
    assert time.monotonic() - left_s < 3
    assert metric(server, 'mmllm_cancelled_total{reason="answering"}') == before + 1
    until(lambda: server.answering.under_way == 0, 5)


def test_a_client_that_leaves_a_whole_answer_ends_it(server, slow, short_clip):
    body = {"model": "tiny", "messages": about(short_clip), **LONG}
    httpx.post(f"{server.url}/v1/chat/completions", json={**body, "max_tokens": 1}, timeout=60)  # decoded now
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.8)
    until(lambda: server.answering.under_way == 0 and not server.answering.llm.running, 5)


def test_a_question_whose_client_left_while_it_waited_is_not_run(untrained_qa, limits, slow, short_clip):
    with served({"tiny": untrained_qa}, limits, batching={"rows": 1}) as ready:
        body = {"model": "tiny", "messages": about(short_clip), "stream": True, **LONG}
        with httpx.stream("POST", f"{ready.url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()  # the stream ends with this iterator
            next(lines)
            generated = metric(ready, "mmllm_generated_tokens_total")
            with contextlib.suppress(httpx.ReadTimeout):
                httpx.post(f"{ready.url}/v1/chat/completions", json={**body, "stream": False}, timeout=1.0)
        until(lambda: ready.answering.under_way == 0 and not ready.answering.llm.running, 10)
        until(lambda: metric(ready, 'mmllm_cancelled_total{reason="waiting"}') == 1, 5)
        assert metric(ready, "mmllm_generated_tokens_total") > generated


def test_a_cancelled_row_changes_no_other(untrained_qa, limits, short_clip, slow):
    slow.pause_s = 0.01
    with served({"tiny": untrained_qa}, limits, batching={"window_s": 1.0}) as ready:
        body = {"model": "tiny", "messages": about(short_clip), "max_tokens": 120}
        whole = httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).json()
        replies = []

        def ask():
            replies.append(httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).json())

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        with httpx.stream(
            "POST", f"{ready.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60
        ) as gone:
            next(gone.iter_lines())
        for thread in threads:
            thread.join()
        assert {reply["choices"][0]["message"]["content"] for reply in replies} == {
            whole["choices"][0]["message"]["content"]
        }


STUCK = """
import sys, time
sys.stdout.write('{"ready": true, "bytes": 0}\\n')
sys.stdout.flush()
sys.stdin.readline()
time.sleep(600)
"""


@pytest.fixture
def stuck(monkeypatch):
    """Files are read by a process that never answers, until the fixture's function is called."""
    with monkeypatch.context() as patch:
        started = ConfinedReading._started
        patch.setattr(ConfinedReading, "_started", lambda self: _started_as(self, started))
        yield patch.undo


def _started_as(reading, started):
    reading.command = (sys.executable, "-c", STUCK)
    try:
        return started(reading)
    finally:
        reading.command = WORKER


@contextlib.contextmanager
def leaving(ready, clip, numbers, after_s):
    """Clients that ask about so many frames of a clip each, wait in this block, and leave after so many seconds."""

    def ask(number):
        body = {"model": "tiny", "messages": about(clip), "num_frames": number}
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=after_s)

    threads = [threading.Thread(target=ask, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    until(lambda: ready.answering.under_way == len(threads), 20)
    yield
    for thread in threads:
        thread.join()


def test_a_client_that_leaves_ends_what_is_read_for_it(untrained_qa, limits, short_clip, second_clip, stuck):
    numbers = (2, 3, 3, *range(4, 14))
    with served({"tiny": untrained_qa}, limits, decoders=1) as ready:
        with leaving(ready, second_clip, numbers, 2.0):
            pass
        until(lambda: ready.answering.under_way == 0, 5)
        stuck()
        assert metric(ready, 'mmllm_cancelled_total{reason="preparing"}') == len(numbers)
        assert metric(ready, 'mmllm_videos_total{kind="decoded"}') == 0
        body = {"model": "tiny", "messages": about(short_clip)}
        assert httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_a_kept_video_does_not_wait_for_those_that_are_read(
    untrained_qa, limits, short_clip, second_clip, stuck, monkeypatch
):
    with served({"tiny": untrained_qa}, limits, decoders=1) as ready:
        kept = ready.answering
        encoded = untrained_qa.encode_video(short_clip, num_frames=12)
        find = kept.shelf.get
        monkeypatch.setattr(kept.shelf, "get", lambda key: encoded if key[0].num_frames == 12 else find(key))
        numbers = (2, 3, 3, *range(4, 12))
        with leaving(ready, second_clip, numbers, 4.0):
            body = {"model": "tiny", "messages": about(short_clip)}
            assert httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
            assert kept.under_way == len(numbers), "they still wait"


def test_a_full_queue_is_told_at_once(untrained_qa, limits, slow, short_clip):
    import dataclasses

    with served({"tiny": untrained_qa}, dataclasses.replace(limits, waiting=1)) as ready:
        body = {"model": "tiny", "messages": about(short_clip), "stream": True, **LONG}
        with httpx.stream("POST", f"{ready.url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            second = httpx.post(f"{ready.url}/v1/chat/completions", json=asked(), timeout=60)
            refused(second, 429, "queue_full")
            assert int(second.headers["retry-after"]) > 0


def test_an_llm_that_fails_is_told_in_both_forms_and_the_next_question_is_answered(server, short_clip, monkeypatch):
    def fail(self, prompts, **options):
        raise RuntimeError(f"the device at {server.folder}/x is gone")

    with monkeypatch.context() as patch:
        patch.setattr(OwnPrompts, "generate", fail)
        body = {"model": "tiny", "messages": about(short_clip)}
        message = refused(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60), 500, "internal")
        assert "device" not in message
        stream = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60)
        last = json.loads(stream.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "internal"
        events = httpx.post(
            f"{server.url}/v1/responses", json={"model": "tiny", "input": "When?", "stream": True}, timeout=60
        )
        assert '"type": "response.failed"' in events.text
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_a_dead_llm_is_told(untrained_qa, limits):
    with served({"tiny": untrained_qa}, limits) as ready:
        ready.answering.llm.close()
        refused(httpx.post(f"{ready.url}/v1/chat/completions", json=asked()), 503, "engine_dead")
        assert httpx.get(f"{ready.url}/health").status_code == 503


def test_an_answer_that_takes_too_long_is_cut(untrained_qa, limits, slow, short_clip):
    import dataclasses

    with served({"tiny": untrained_qa}, dataclasses.replace(limits, answer_s=0.2)) as ready:
        body = {"model": "tiny", "messages": about(short_clip), **LONG}
        choice = httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"].startswith("the the")


def test_at_its_end_the_server_lets_answers_end_and_takes_no_new_ones(untrained_qa, limits, slow, short_clip):
    with served({"tiny": untrained_qa}, limits, drain_s=0.5) as ready:
        body = {"model": "tiny", "messages": about(short_clip), "stream": True, **LONG}
        with httpx.stream("POST", f"{ready.url}/v1/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            ready.server.drain()
            health = httpx.get(f"{ready.url}/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            refused(httpx.post(f"{ready.url}/v1/chat/completions", json=asked()), 503, "draining")
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        until(lambda: ready.server.should_exit, 10)
