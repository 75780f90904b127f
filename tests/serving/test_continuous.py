"""Continuous batching: the answers of one at a time, whoever joins or leaves, and what it does not do."""

import copy
import gc
import json
import queue
import threading
import time

import httpx
import pytest
import torch
from running_server import about, asked, data, refused, served, until

from mmllm.errors import ConfigError
from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.plain_decoder import require_own_loop
from mmllm.inference.prompts import Turn
from mmllm.llm.harness import install
from mmllm.llm.virtual_ids import VirtualIds, with_virtual_ids
from mmllm.serving import continuous_loop
from mmllm.serving.continuous_loop import require_transformers
from mmllm.serving.continuous_threads import ContinuousThreads
from mmllm.serving.jobs import Ending, Job
from mmllm.serving.metrics import Metrics
from mmllm.serving.question import Question
from mmllm.serving.speech import Speech

SMALL = {"positions": 2048, "step_tokens": 64}
QUESTIONS = ("When does the red circle spin?", "When?", "When is the green square on screen, and when is the star?")


@pytest.fixture(scope="module")
def ready(untrained_qa, limits):
    with served({"tiny": untrained_qa}, limits, continuous=SMALL) as started:
        yield started


def post(ready, body):
    return httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=120)


def content(reply):
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    return choice["message"]["content"], choice["message"]["spans"], choice["finish_reason"], usage(reply)


def usage(reply):
    tokens = reply.json()["usage"]
    return tokens["prompt_tokens"], tokens["completion_tokens"]


def about_video(path, question=QUESTIONS[0], **changes):
    return {"model": "tiny", "messages": about(path, question), **changes}


def every_kind(short_clip, second_clip, picture):
    image = {"type": "image_url", "image_url": {"url": data(picture, "image/png")}}
    videos = [about(path)[0]["content"][0] for path in (short_clip, second_clip)]
    text = {"type": "text", "text": QUESTIONS[0]}
    return [
        about_video(short_clip),
        about_video(short_clip, QUESTIONS[2], max_tokens=3),
        about_video(second_clip, reducer="uniform:ratio=0.5", num_frames=8),
        about_video(short_clip, QUESTIONS[1], num_frames=20),  # more tokens than a step reads
        asked(messages=[{"role": "user", "content": [*videos, text]}]),
        asked(messages=[{"role": "user", "content": [image, text]}]),
        asked(),
    ]


def test_answers_are_those_of_one_at_a_time(ready, server, short_clip, second_clip, picture):
    bodies = every_kind(short_clip, second_clip, picture)
    expected = [content(post(server, body)) for body in bodies]
    assert [content(post(ready, body)) for body in bodies] == expected
    # all of them at once, twice, some of them later
    got = [None] * (2 * len(bodies))

    def ask(number):
        time.sleep(0.03 * (number % 4))
        got[number] = content(post(ready, bodies[number % len(bodies)]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(got))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected * 2


def test_a_stream_is_the_whole_answer(ready, short_clip):
    whole = content(post(ready, about_video(short_clip)))
    lines = post(ready, about_video(short_clip, stream=True)).text.strip().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-1]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole[0]
    assert chunks[-1]["delta"]["spans"] == whole[1]


def test_words_that_end_an_answer(ready, short_clip):
    text = content(post(ready, about_video(short_clip)))[0]
    stop = text[text.index(" ") : text.index(" ") + 3]
    reply = post(ready, about_video(short_clip, stop=[stop]))
    cut, _, reason, _ = content(reply)
    assert (cut, reason) == (text[: text.index(stop)], "stop")
    assert reply.json()["choices"][0]["message"]["answer"] == cut


def test_a_client_that_leaves_frees_its_row_and_changes_no_other(ready, server, short_clip):
    expected = content(post(server, about_video(short_clip)))
    body = about_video(short_clip, QUESTIONS[1], stream=True, max_tokens=500)
    with httpx.stream("POST", f"{ready.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
        assert content(post(ready, about_video(short_clip))) == expected
    until(lambda: not ready.answering.llm.running, 5)
    assert content(post(ready, about_video(short_clip))) == expected


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"decoding": "token-recycling"}, "leave decoding out"),
        ({"temperature": 0.5}, "draws no words"),
        ({"reducer": "fastv:layer=1"}, "works inside the LLM"),
        ({"context": "h2o"}, "works inside the LLM"),
    ],
)
def test_what_it_cannot_do_is_refused(ready, short_clip, setting, words):
    assert words in refused(post(ready, about_video(short_clip, **setting)), 400, "bad_settings")


def test_a_prompt_larger_than_the_cache_is_refused(untrained_qa, limits, short_clip):
    with served({"tiny": untrained_qa}, limits, continuous={"positions": 32, "step_tokens": 32}) as small:
        message = refused(post(small, about_video(short_clip)), 400, "context_length_exceeded")
    assert "the cache holds 32" in message


def test_other_attentions_and_quantised_weights_are_refused(untrained_qa):
    for change, reason in (
        (lambda config: setattr(config, "_attn_implementation", "eager"), "eager attention, and not sdpa"),
        (lambda config: setattr(config, "sliding_window", 8), "layers without full attention"),
    ):
        qa = copy.deepcopy(untrained_qa)
        change(qa.model.language_model.config)
        with pytest.raises(ConfigError, match=reason):
            require_own_loop(qa)
    qa = copy.deepcopy(untrained_qa)
    qa.quantize()
    with pytest.raises(ConfigError, match="quantised weights"):
        require_own_loop(qa)
    qa = copy.deepcopy(untrained_qa)
    qa.model.config.time_choice = "together"
    with pytest.raises(ConfigError, match="time_choice = 'together'"):
        require_own_loop(qa)


def test_another_version_of_transformers_is_refused(monkeypatch):
    require_transformers()
    monkeypatch.setattr(continuous_loop, "_SETTINGS", ("pages",))
    with pytest.raises(ConfigError, match="pages is missing"):
        ContinuousThreads(answer_s=1.0, metrics=Metrics())


def test_a_loop_that_fails_begins_again(ready, short_clip, monkeypatch):
    expected = content(post(ready, about_video(short_clip)))

    def broken(*_):
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(VirtualIds, "write", broken)
        refused(post(ready, about_video(short_clip, QUESTIONS[1], num_frames=5)), 503, "engine_dead")
    assert content(post(ready, about_video(short_clip))) == expected


def test_it_works_in_an_llm_that_stages_were_prepared_for(untrained_qa, limits, short_clip):
    qa = copy.deepcopy(untrained_qa)
    install(qa.model.language_model.base_model)
    with served({"plain": untrained_qa, "tiny": qa}, limits, continuous=SMALL) as both:
        replies = [content(post(both, about_video(short_clip, model=name))) for name in ("plain", "tiny")]
        assert replies[0] == replies[1]
        assert len(both.answering.llm._threads) == 2


def test_the_loop_of_a_dropped_model_ends(untrained_qa):
    threads = ContinuousThreads(answer_s=1.0, metrics=Metrics(), **SMALL)
    qa = copy.deepcopy(untrained_qa)
    prompts = OwnPrompts(qa)
    events = queue.Queue()
    job = Job(
        question=Question(model="tiny", sayings=()),
        prompts=prompts,
        prompt=prompts.prompt([Turn(role="user", content=("When?",))]),
        speech=Speech(lambda ids: " ".join(map(str, ids)), ()),
        most_tokens=4,
        gone=threading.Event(),
        emit=events.put,
    )
    threads.put(job)
    while not isinstance(event := events.get(timeout=30), Ending):
        assert isinstance(event, str)
    until(lambda: not threads.running)
    before = [thread for thread in threading.enumerate() if "mmllm-continuous" in thread.name]
    del qa, prompts, job
    gc.collect()
    assert not threads._threads
    until(lambda: sum(thread.is_alive() for thread in before) < len(before))
    threads.close()


class Medium:
    pass


def test_visual_tokens_have_ids_of_their_own_until_their_medium_is_gone():
    ids, first, second = VirtualIds(100), Medium(), Medium()
    tokens = torch.randn(3, 4), torch.randn(2, 4)
    given = ids.ids_of([first], tokens[0])
    assert given.tolist() == [100, 101, 102]
    assert ids.ids_of([first, second], tokens[1]).tolist() == [103, 104]
    assert ids.ids_of([first], tokens[0]).tolist() == [100, 101, 102]
    table = torch.nn.Embedding(100, 4)
    llm = torch.nn.Module()
    llm.inner = torch.nn.Module()
    llm.inner.embed, llm.get_input_embeddings = table, lambda: table
    other = with_virtual_ids(llm, ids)
    assert llm.inner.embed is table
    embedded = other.inner.embed(torch.tensor([[7, 102, 100, 104, 9]]))[0]
    expected = torch.stack([table.weight[7], tokens[0][2], tokens[0][0], tokens[1][1], table.weight[9]])
    torch.testing.assert_close(embedded, expected)
    del second
    gc.collect()
    assert len(ids) == 1
    assert other.inner.embed(torch.tensor([[103, 7]]))[0, 0].eq(0).all()
    del first
    gc.collect()
    assert len(ids) == 0
    third = Medium()
    assert ids.ids_of([third], tokens[1]).tolist() == [105, 106]  # no id is given twice
