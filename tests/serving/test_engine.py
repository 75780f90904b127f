"""An engine runs the LLM: the contract with a stub that runs the exported folder in transformers."""

import json
import threading
import time

import httpx
import pytest
from engine_stub import engine
from running_server import QUESTION, about, asked, data, refused, served, until

from mmllm.inference.plain_decoder import save_decoder
from mmllm.serving.engine_requests import KEY


@pytest.fixture(scope="module")
def started(untrained_qa, tmp_path_factory):
    """The stub, and its address."""
    folder = tmp_path_factory.mktemp("engine") / "llm"
    save_decoder(untrained_qa, folder)
    with engine(folder) as (own, url):
        yield own, url


@pytest.fixture
def stub(started):
    own, _ = started
    own.status, own.reply = 200, None
    own.asked.clear()
    own.keys.clear()
    return own


@pytest.fixture(scope="module")
def post(untrained_qa, limits, started):
    """Asks a server whose LLM the stub runs."""
    with served({"tiny": untrained_qa}, limits, engine=started[1]) as ready:

        def send(body, path="chat/completions"):
            return httpx.post(f"{ready.url}/v1/{path}", json=body, timeout=120)

        send.ready = ready
        yield send


def about_video(path, **changes):
    return {"model": "tiny", "messages": about(path), **changes}


def content(reply):
    message = reply.json()["choices"][0]["message"]
    return message["content"], message["spans"], reply.json()["choices"][0]["finish_reason"]


def test_answers_are_those_of_this_process(post, stub, server, short_clip, second_clip, picture):
    image = {"type": "image_url", "image_url": {"url": data(picture, "image/png")}}
    videos = [about(path)[0]["content"][0] for path in (short_clip, second_clip)]
    question = {"type": "text", "text": QUESTION}
    bodies = [
        about_video(short_clip),
        about_video(short_clip, reducer="uniform:ratio=0.5", num_frames=8),
        about_video(short_clip, max_tokens=3),
        asked(messages=[{"role": "user", "content": [*videos, question]}]),
        asked(messages=[{"role": "user", "content": [image, question]}]),
        asked(),
    ]
    for body in bodies:
        here = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        there = post(body)
        assert content(there) == content(here)
        usage, own = there.json()["usage"], here.json()["usage"]
        assert usage["prompt_tokens"] == own["prompt_tokens"]
        assert usage["completion_tokens"] == own["completion_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3  # what the engine says
    assert {body["model"] for body in stub.asked} == {"tiny"}
    assert all(body["return_token_ids"] and body["stream"] and not body["skip_special_tokens"] for body in stub.asked)


def test_a_stream_is_the_whole_answer(post, stub, short_clip):
    whole = content(post(about_video(short_clip)))
    lines = post(about_video(short_clip, stream=True)).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole[0]
    assert chunks[-1]["delta"]["spans"] == whole[1]


def test_sampling_and_the_key_are_handed_on(post, stub, short_clip, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    post(about_video(short_clip, temperature=0.7, top_p=0.9, seed=5, max_tokens=4))
    (body,) = stub.asked
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.7, 0.9, 5, 4)
    assert stub.keys == ["Bearer secret"]


def test_the_engine_writes_times_of_videos_only(post, stub, short_clip, untrained_qa):
    post(about_video(short_clip))
    post(asked())
    about_a_video, text = stub.asked
    assert "logit_bias" not in about_a_video
    assert text["logit_bias"] == {str(token): -100 for token in untrained_qa.model.config.time_token_ids}


def test_words_that_end_an_answer_end_it_at_the_engine_too(post, stub, short_clip):
    text = content(post(about_video(short_clip)))[0]
    stop = text[text.index(" ") : text.index(" ") + 3]
    reply = post(about_video(short_clip, stop=[stop]))
    cut, _, reason = content(reply)
    assert cut == text[: text.index(stop)] == reply.json()["choices"][0]["message"]["answer"]
    assert reason == "stop"


def test_many_questions_at_once(post, stub, short_clip, second_clip):
    bodies = [about_video(path) for path in (short_clip, second_clip)] * 4
    alone = [content(post(body)) for body in bodies]
    together = [None] * len(bodies)

    def ask(number):
        together[number] = content(post(bodies[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"decoding": "token-recycling"}, "decoding"), ({"reducer": "fastv:layer=1"}, "works inside the LLM"),
     ({"context": "h2o"}, "works inside the LLM")],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_refused_before_it_is_asked(post, stub, short_clip, setting, words):
    assert words in refused(post(about_video(short_clip, **setting)), 400, "bad_settings")
    assert not stub.asked


@pytest.mark.parametrize(
    "reply",
    [["no JSON"], ['{"error": {"message": "x"}}'], [{"choices": [{"index": 0, "text": "a", "token_ids": None}]}]],
)
def test_what_is_no_answer_of_an_engine_is_told(post, stub, short_clip, reply):
    stub.reply = reply
    refused(post(about_video(short_clip)), 500, "internal")
    stub.reply = None
    assert post(about_video(short_clip)).status_code == 200


def test_an_engine_that_refuses_or_is_gone(post, stub, untrained_qa, limits, short_clip):
    stub.status = 404
    message = refused(post(about_video(short_clip)), 500, "internal")
    assert "secret" not in message
    with served({"tiny": untrained_qa}, limits, engine="http://127.0.0.1:1/v1") as ready:
        answer = httpx.post(f"{ready.url}/v1/chat/completions", json=asked(), timeout=60)
        refused(answer, 503, "engine_dead")
        assert int(answer.headers["retry-after"]) > 0


def test_a_client_that_leaves_ends_the_answer_at_the_engine(post, stub, short_clip):
    word = {"choices": [{"index": 0, "text": "a", "token_ids": [9], "finish_reason": None}]}

    def slowly():
        for _ in range(600):
            time.sleep(0.05)
            yield word

    stub.reply = slowly()
    ready, before = post.ready, stub.sent
    body = about_video(short_clip, stream=True, max_tokens=500)
    with httpx.stream("POST", f"{ready.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    until(lambda: not ready.answering.llm.running, 10)
    assert stub.sent - before < 400
