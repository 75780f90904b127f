"""Responses and uploads by OpenAI's own client."""

import json

import httpx
import openai
import pytest
from running_server import QUESTION, about, inputs, refused


def test_a_response_is_the_chat_completion(client, short_clip):
    chat = client.chat.completions.create(model="tiny", messages=about(short_clip))
    reply = client.responses.create(model="tiny", input=inputs(short_clip))
    assert reply.output_text == chat.choices[0].message.content
    assert reply.output[0].content[0].spans == chat.choices[0].message.spans
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.usage.input_tokens_details.frames == 12


def test_the_events_of_a_response(client, short_clip):
    whole = client.responses.create(model="tiny", input=inputs(short_clip), max_output_tokens=5)
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="tiny", input=inputs(short_clip), max_output_tokens=5, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output[0].content[0].spans == whole.output[0].content[0].spans


def test_the_clients_own_stream_gets_the_whole_response(client, short_clip, untrained_qa, monkeypatch):
    every = list(range(len(untrained_qa.processor.tokenizer)))
    monkeypatch.setattr(type(untrained_qa), "stop_tokens", property(lambda _: every))  # the first token ends the answer
    with client.responses.stream(model="tiny", input=inputs(short_clip)) as stream:
        final = stream.get_final_response()
    whole = client.responses.create(model="tiny", input=inputs(short_clip))
    assert final.status == whole.status == "completed"
    assert final.output_text == whole.output_text
    assert final.output[0].content[0].spans == whole.output[0].content[0].spans


def test_instructions_and_a_schema(client, short_clip):
    schema = {"type": "object", "properties": {"spans": {"type": "array"}, "answer": {"type": "string"}}}
    reply = client.responses.create(
        model="tiny",
        instructions="Say when.",
        input=inputs(short_clip),
        text={"format": {"type": "json_schema", "name": "when", "schema": schema}},
    )
    assert list(json.loads(reply.output_text)) == ["spans", "answer"]


def test_a_response_repeats_what_was_asked(client):
    text = {"format": {"type": "json_object"}, "verbosity": "low"}
    settings = {"instructions": "Say when.", "metadata": {"row": "7"}, "max_output_tokens": 3, "text": text}
    settings["user"] = "me"
    asked = {"model": "tiny", "input": "When?", **settings}
    events = client.responses.create(**asked, stream=True)
    replies = [event.response for event in events if hasattr(event, "response")]
    assert len(replies) == 3
    for reply in (client.responses.create(**asked), *replies):
        said = reply.model_dump(exclude_unset=True)
        assert {name: said[name] for name in settings} == settings
    plain = client.responses.create(model="tiny", input="When?").model_dump(exclude_unset=True)
    assert {name: plain[name] for name in settings} == {
        "instructions": None,
        "metadata": {},
        "max_output_tokens": None,
        "text": {"format": {"type": "text"}},
        "user": None,
    }


def test_an_uploaded_file_is_asked_by_its_id(client, server, short_clip):
    file = client.files.create(file=("clip.mp4", short_clip.read_bytes()), purpose="user_data")
    assert file.bytes == short_clip.stat().st_size
    assert client.files.retrieve(file.id).filename == "clip.mp4"
    assert file.id in [listed.id for listed in client.files.list()]
    question = {"type": "text", "text": QUESTION}
    for part in (
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "video_url", "video_url": {"url": file.id}},
    ):
        reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part, question]}])
        assert reply.choices[0].message.content == (
            client.chat.completions.create(model="tiny", messages=about(short_clip)).choices[0].message.content
        )
    part = {"type": "input_file", "file_id": file.id}
    text = {"type": "input_text", "text": QUESTION}
    reply = client.responses.create(model="tiny", input=[{"role": "user", "content": [part, text]}])
    assert reply.usage.input_tokens_details.frames == 12
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_file_that_is_a_picture_is_told_by_its_content(client, picture):
    file = client.files.create(file=("film.mp4", picture.read_bytes()), purpose="user_data")
    content = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": "What?"}]
    reply = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
    assert reply.usage.prompt_tokens_details.image_tokens > 0


def test_files_are_kept_only_for_their_user(client, server, short_clip):
    client.files.create(file=("a.mp4", short_clip.read_bytes()), purpose="user_data")
    assert server.folder.stat().st_mode & 0o077 == 0
    assert not [path for path in server.folder.iterdir() if path.is_file() and path.name != ".lock"]


def test_an_upload_that_is_deleted_takes_no_other_of_the_same_content(client, short_clip):
    content = short_clip.read_bytes()
    client.chat.completions.create(model="tiny", messages=about(short_clip))
    first, second = (client.files.create(file=(name, content), purpose="user_data") for name in ("a.mp4", "b.mp4"))
    assert first.id != second.id
    assert (first.filename, second.filename) == ("a.mp4", "b.mp4")
    client.files.delete(first.id)
    assert client.files.retrieve(second.id).filename == "b.mp4"
    part = {"type": "input_file", "file_id": second.id}
    text = {"type": "input_text", "text": QUESTION}
    reply = client.responses.create(model="tiny", input=[{"role": "user", "content": [part, text]}])
    assert reply.output_text == client.responses.create(model="tiny", input=inputs(short_clip)).output_text
    client.files.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(second.id)


def test_the_list_of_files_is_what_is_asked_for(client):
    for listed in client.files.list():
        client.files.delete(listed.id)
    purposes = ("user_data", "vision", "user_data")
    ids = [client.files.create(file=(f"{i}.mp4", b"x"), purpose=purpose).id for i, purpose in enumerate(purposes)]

    def listed(**query):
        return [file.id for file in client.files.list(**query).data]

    assert listed() == listed(order="desc") == ids[::-1]
    assert listed(order="asc") == ids
    assert listed(order="asc", limit=2) == ids[:2]
    assert listed(order="asc", after=ids[0]) == ids[1:]
    assert listed(order="asc", after=ids[1], purpose="user_data") == ids[2:]
    assert listed(purpose="vision") == ids[1:2]
    assert listed(purpose="nothing") == []
    assert client.files.list(limit=2).has_more
    assert not client.files.list(limit=3).has_more
    assert [file.id for file in client.files.list(limit=1, order="asc")] == ids  # page by page


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"limit": "0"}, "bad_settings"),
        ({"limit": "10001"}, "bad_settings"),
        ({"limit": "many"}, "bad_settings"),
        ({"limit": "9" * 5000}, "bad_settings"),
        ({"order": "up"}, "bad_settings"),
        ({"before": "file-1"}, "unknown_parameter"),
    ],
)
def test_a_list_of_files_that_is_asked_in_another_way(server, query, code):
    refused(httpx.get(f"{server.url}/v1/files", params=query), 400, code, next(iter(query)))
    refused(httpx.get(f"{server.url}/v1/files", params={"after": "file-1"}), 404, "file_not_found", "after")


def test_an_upload_that_asks_for_more(client, server, limits):
    def upload(**data):
        return httpx.post(f"{server.url}/v1/files", files={"file": ("a.mp4", b"a")}, data=data)

    with pytest.raises(openai.BadRequestError, match="expires_after"):
        client.files.create(
            file=("a.mp4", b"a"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    refused(upload(purpose="a" * 61), 400, "bad_settings", "purpose")
    refused(upload(colour="red"), 400, "unknown_parameter", "colour")
    stored = upload(purpose="vision").json()
    assert stored["purpose"] == "vision"
    assert stored["expires_at"] - stored["created_at"] == limits.upload_age_s
