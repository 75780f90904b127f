"""Chat completions by OpenAI's own client: whole and streamed, with spans, several videos, images and text."""

import dataclasses
import json

import httpx
import openai
import pytest
from running_server import QUESTION, about, data, served

from mmllm.serving.answer_forms import sentence_of, spans_of


@pytest.fixture(scope="module")
def answer(untrained_qa, short_clip):
    """What the model answers without a server."""
    return untrained_qa.ask(short_clip, QUESTION)


def streamed(client, **options):
    """Text, spans, finish reason and usage of a stream."""
    text, spans, reason, usage = "", None, None, None
    chunks = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            spans = getattr(choice.delta, "spans", spans)
            reason = choice.finish_reason or reason
    return text, spans, reason, usage


def test_a_whole_answer_is_that_of_the_model_with_its_spans(client, short_clip, answer):
    reply = client.chat.completions.create(model="tiny", messages=about(short_clip))
    message = reply.choices[0].message
    assert message.spans == spans_of(answer)
    assert message.answer == sentence_of(answer)
    assert "<t" not in message.content
    assert reply.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_answer_is_the_whole_one(client, short_clip):
    asked = {"model": "tiny", "messages": about(short_clip)}
    client.chat.completions.create(**asked)  # from here on, the LLM's cache of the video is kept
    whole = client.chat.completions.create(**asked)
    text, spans, reason, usage = streamed(client, **asked)
    assert text == whole.choices[0].message.content
    assert spans == whole.choices[0].message.spans
    assert reason == whole.choices[0].finish_reason
    assert usage == whole.usage


def test_usage_is_what_the_llm_read(client, untrained_qa, short_clip):
    encoded = untrained_qa.encode_video(short_clip)
    prompt = untrained_qa.prompt(QUESTION, encoded.duration_s)
    usage = client.chat.completions.create(model="tiny", messages=about(short_clip)).usage
    (sequence,) = encoded.sequences.values()
    assert usage.prompt_tokens == len(prompt.input_ids) - 1 + int(sequence.mask.sum())
    details = usage.prompt_tokens_details
    assert details.video_tokens == int(sequence.mask.sum())
    assert details.video_tokens_before_reduction == encoded.token_counts["encoder"]
    assert details.video_tokens_after_reducers == encoded.token_counts["reducers"]
    assert details.frames == 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_second_question_about_a_video_is_told_as_cached(client, server, untrained_qa, short_clip):
    def ask(question):
        messages = about(short_clip, question, num_frames=7)
        return client.chat.completions.create(model="tiny", messages=messages)

    first, second, third = ask(QUESTION), ask("When?"), ask(QUESTION)
    prompt = untrained_qa.prompt("When?", 8.0)
    behind = len(prompt.input_ids) - len(untrained_qa.given(prompt.input_ids))
    counts = [reply.usage.prompt_tokens_details.cached_tokens for reply in (first, second, third)]
    assert counts == [0, second.usage.prompt_tokens - behind, second.usage.prompt_tokens - behind]
    assert counts[1] >= second.usage.prompt_tokens_details.video_tokens > 0
    assert third.choices[0].message == first.choices[0].message
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert any(line.startswith('mmllm_prompt_tokens_total{kind="cached"}') for line in lines)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("decoding", ["token-recycling", "prompt-lookup", "spectr:layers=1", "rapid:frames=4,layers=1"])
def test_an_answer_written_by_a_decoding_method(client, short_clip, answer, decoding, stream):
    asked = {"model": "tiny", "messages": about(short_clip), "extra_body": {"decoding": decoding}}
    if stream:
        content, spans, _, usage = streamed(client, **asked)
        assert spans == spans_of(answer)
    else:
        reply = client.chat.completions.create(**asked)
        content, usage, message = reply.choices[0].message.content, reply.usage, reply.choices[0].message
        assert message.spans == spans_of(answer)
        assert message.decoding["name"] == decoding.split(":")[0]
        assert message.decoding["other_law"] == ""
        assert message.decoding["counts"]["new_tokens"] == usage.completion_tokens
    assert (
        content == client.chat.completions.create(model="tiny", messages=about(short_clip)).choices[0].message.content
    )
    assert usage.prompt_tokens_details.cached_tokens == 0  # drafts are verified behind a prompt that was read whole


def test_a_method_that_writes_another_law_says_so(client, short_clip):
    reply = client.chat.completions.create(
        model="tiny", messages=about(short_clip), extra_body={"decoding": "bild:layers=1"}
    )
    assert "small model" in reply.choices[0].message.decoding["other_law"]


def test_a_method_does_not_take_two_videos_or_an_image(client, short_clip, second_clip, picture):
    question = {"type": "text", "text": QUESTION}
    videos = [about(path)[0]["content"][0] for path in (short_clip, second_clip)]
    image = {"type": "file", "file": {"file_data": data(picture, "image/png")}}
    for content in ([*videos, question], [image, question], [videos[0], image, question]):
        with pytest.raises(openai.BadRequestError, match="about one video"):
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": content}],
                extra_body={"decoding": "token-recycling"},
            )


def test_policies_of_the_cache_are_chosen_and_told(client, untrained_qa, short_clip):
    policy = "h2o:heavy=0.2,recent=0.2"
    replies = [
        client.chat.completions.create(model="tiny", messages=about(short_clip), extra_body={"context": given})
        for given in (policy, [policy])
    ]
    expected = untrained_qa.ask(short_clip, QUESTION, context=policy)
    for reply in replies:
        message = reply.choices[0].message
        assert (message.spans, message.answer) == (spans_of(expected), sentence_of(expected))
        assert message.context["policies"] == expected.context["policies"]
        assert message.context["bytes_peak"] == expected.context["bytes_peak"]
    plain = client.chat.completions.create(model="tiny", messages=about(short_clip))
    assert "context" not in plain.choices[0].message.model_extra
    both = {"context": policy, "decoding": "token-recycling"}
    with pytest.raises(openai.BadRequestError, match="h2o works inside the LLM"):
        client.chat.completions.create(model="tiny", messages=about(short_clip), extra_body=both)


def test_a_cache_that_is_no_longer_kept_is_read_again(untrained_qa, limits, short_clip):
    small = dataclasses.replace(limits, kept_bytes=1)  # nothing stays
    with served({"tiny": untrained_qa}, small) as ready:
        replies = [
            httpx.post(
                f"{ready.url}/v1/chat/completions", json={"model": "tiny", "messages": about(short_clip)}, timeout=120
            )
            for _ in range(2)
        ]
        assert len(ready.answering.shelf) == 0
    assert [reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies] == [0, 0]
    contents = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    assert contents[0] == contents[1]


def test_a_reducer_of_the_request_is_used_and_counted(client, untrained_qa, short_clip):
    reply = client.chat.completions.create(
        model="tiny", messages=about(short_clip), extra_body={"reducer": "uniform:ratio=0.5", "num_frames": 8}
    )
    reduced = untrained_qa.with_stages(reducers=["uniform:ratio=0.5"])
    encoded = reduced.encode_video(short_clip, num_frames=8)
    details = reply.usage.prompt_tokens_details
    assert details.frames == 8
    assert details.video_tokens_after_reducers == encoded.token_counts["reducers"] < encoded.token_counts["encoder"]
    assert reply.choices[0].message.spans == spans_of(reduced.ask(encoded, QUESTION))


def test_a_part_of_a_video_at_a_rate(client, untrained_qa, short_clip):
    settings = {"fps": 2, "start_s": 1.0, "end_s": 5.0}
    reply = client.chat.completions.create(model="tiny", messages=about(short_clip), extra_body=settings)
    encoded = untrained_qa.encode_video(short_clip, **settings)
    assert reply.usage.prompt_tokens_details.frames == len(encoded.times_s) == 8
    assert reply.choices[0].message.spans == spans_of(untrained_qa.ask(encoded, QUESTION))


def test_settings_of_a_part_come_before_those_of_the_request(client, short_clip):
    reply = client.chat.completions.create(
        model="tiny", messages=about(short_clip, num_frames=5), extra_body={"num_frames": 9}
    )
    assert reply.usage.prompt_tokens_details.frames == 5


def test_two_videos_in_a_message(client, untrained_qa, short_clip, second_clip):
    first, second = (about(path)[0]["content"][0] for path in (short_clip, second_clip))
    content = [first, second, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    reply = client.chat.completions.create(model="tiny", messages=messages)
    other = client.chat.completions.create(model="tiny", messages=messages, extra_body={"spans_of": 0})
    assert reply.usage.prompt_tokens_details.frames == 24
    assert streamed(client, model="tiny", messages=messages)[0] == reply.choices[0].message.content
    last = untrained_qa.encode_video(second_clip).duration_s
    assert all(span["end_s"] <= last for span in reply.choices[0].message.spans)
    for mine, theirs in zip(reply.choices[0].message.spans, other.choices[0].message.spans, strict=True):
        assert mine["end_s"] * 8 == pytest.approx(theirs["end_s"] * 9, rel=0.05)  # a share of another length


def test_an_image(client, picture):
    content = [
        {"type": "image_url", "image_url": {"url": data(picture, "image/png")}},
        {"type": "text", "text": "What?"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
    details = reply.usage.prompt_tokens_details
    assert details.image_tokens > 0
    assert details.video_tokens == 0
    assert reply.choices[0].message.spans == []


def test_text_only(client):
    reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Who are you?"}])
    assert reply.choices[0].message.spans == []
    assert reply.usage.prompt_tokens_details.video_tokens == 0
    assert reply.usage.completion_tokens > 0


def test_earlier_turns_and_a_system_prompt_are_read(client, short_clip):
    begin = [{"role": "system", "content": "Say when."}, *about(short_clip)]
    reply = client.chat.completions.create(model="tiny", messages=begin)
    more = [*begin, reply.choices[0].message.model_dump(), {"role": "user", "content": "And at 3.5 s?"}]
    later = client.chat.completions.create(model="tiny", messages=more)
    assert later.usage.prompt_tokens > reply.usage.prompt_tokens


def test_spans_as_content_for_clients_that_drop_unknown_fields(client, short_clip, answer):
    asked = {"model": "tiny", "messages": about(short_clip)}
    reply = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    content = json.loads(reply.choices[0].message.content)
    assert content == {"answer": sentence_of(answer), "spans": spans_of(answer)}
    span = {"type": "object", "properties": {"start_s": {"type": "number"}, "end_s": {"type": "number"}}}
    schema = {
        "type": "object",
        "properties": {"spans": {"type": "array", "items": {"$ref": "#/$defs/Span"}}},
        "$defs": {"Span": span},
    }
    form = {"type": "json_schema", "json_schema": {"name": "when", "schema": schema}}
    reply = client.chat.completions.create(**asked, response_format=form)
    assert json.loads(reply.choices[0].message.content) == {"spans": spans_of(answer)}
    assert streamed(client, **asked, response_format=form)[0] == reply.choices[0].message.content


def test_a_stop_text_ends_the_answer_before_it(client, short_clip):
    asked = {"model": "tiny", "messages": about(short_clip)}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    words = whole.split(" ")
    stop = f" {words[len(words) // 2][:2]}"
    reply = client.chat.completions.create(**asked, stop=stop).choices[0]
    assert reply.message.content == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"
    assert reply.message.answer == reply.message.content
    assert streamed(client, **asked, stop=[stop])[0] == reply.message.content
    form = {"type": "json_object"}
    reply = client.chat.completions.create(**asked, stop=stop, response_format=form).choices[0]
    assert stop not in json.loads(reply.message.content)["answer"]


def test_a_limit_of_tokens_is_said(client, short_clip):
    reply = client.chat.completions.create(model="tiny", messages=about(short_clip), max_completion_tokens=2)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 2


def test_drawn_words_are_the_same_for_a_seed(client, short_clip):
    asked = {"model": "tiny", "messages": about(short_clip), "temperature": 1.5, "top_p": 0.9}
    texts = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_the_same_content_is_decoded_once(client, server, short_clip):
    def decoded():
        return server.answering.metrics.text().split('videos_total{kind="decoded"} ')[1].split("\n")[0]

    client.chat.completions.create(model="tiny", messages=about(short_clip, num_frames=7))
    before = decoded()
    client.chat.completions.create(model="tiny", messages=about(short_clip, "And the blue one?", num_frames=7))
    assert decoded() == before
    client.chat.completions.create(model="tiny", messages=about(short_clip, num_frames=7, start_s=1.0))
    assert decoded() != before


def test_a_raw_stream_ends_as_openai_ends_it(server, short_clip):
    body = {"model": "tiny", "messages": about(short_clip), "stream": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "spans" in chunks[-1]["choices"][0]["delta"]
    assert "usage" not in chunks[-1]


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
