"""Wrong input gives a status below 500 and an error in OpenAI's form, whole and streamed."""

import base64
import json
import math
import re
import typing

import httpx
import openai
import pydantic
import pytest
from running_server import about, asked, data, inputs, refused


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"messages": []}, 400, "bad_request", "messages"),
        ({"messages": "When?"}, 400, "bad_request", "messages"),
        ({"messages": [{"role": "user", "content": "When?"}] * 21}, 400, "bad_request", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "bad_request", "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": []}]}, 400, "bad_request", "messages[0].content"),
        ({"messages": [7]}, 400, "bad_request", "messages[0]"),
        ({"messages": [{"role": "user"}]}, 400, "bad_request", "messages[0].content"),
        ({"messages": [{"role": "king", "content": "When?"}]}, 400, "bad_request", "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "When?"}]}, 400, "bad_request", "messages[0].role"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "bad_request", "messages"),
        ({"messages": [{"role": "assistant", "content": "Now."}]}, 400, "bad_request", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "song"}]}]}, 400, "bad_request", None),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "bad_request", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30}]}, 400, "bad_request", None),
        ({"messages": [{"role": "user", "content": "a" * 200_000}]}, 400, "context_length_exceeded", None),
        ({"messages": [{"role": "user", "content": "When? " * 9000}]}, 400, "context_length_exceeded", None),
        ({"model": "huge"}, 404, "model_not_found", "model"),
        ({"model": None}, 400, None, "model"),
        ({"model": 3}, 400, None, "model"),
        ({"logprobs": True}, 400, "unknown_parameter", "logprobs"),
        ({"tools": []}, 400, "unknown_parameter", "tools"),
        ({"context": "chunks"}, 400, "bad_settings", None),
        ({"context": 5}, 400, "bad_settings", "context"),
        ({"context": ["h2o"] * 9}, 400, "bad_settings", "context"),
        ({"context": ["h2o", "h2o"]}, 400, "bad_settings", None),
        ({"context": "h2o:heavy=nan"}, 400, "bad_settings", None),
        ({"decoding": "telepathy"}, 400, "bad_settings", "decoding"),
        ({"decoding": 5}, 400, "bad_settings", "decoding"),
        ({"decoding": "token-recycling:tree=0"}, 400, "bad_settings", "decoding"),
        ({"decoding": "token-recycling:tree=100000"}, 400, "bad_settings", "decoding"),
        ({"decoding": "spectr:draft=/etc"}, 400, "bad_settings", "decoding"),
        ({"decoding": "token-recycling" + " " * 300}, 400, "bad_settings", "decoding"),
        ({"decoding": "token-recycling"}, 400, "bad_settings", "decoding"),  # text alone
        ({"n": 2}, 400, "bad_settings", "n"),
        ({"stream": "yes"}, 400, "bad_settings", "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "bad_settings", "stream_options"),
        ({"seed": 2**70}, 400, "bad_settings", "seed"),
        ({"temperature": -1}, 400, "bad_settings", "temperature"),
        ({"top_p": 0}, 400, "bad_settings", "top_p"),
        ({"max_tokens": 0}, 400, "bad_settings", "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "bad_settings", "max_tokens"),
        ({"metadata": [1]}, 400, "bad_settings", "metadata"),
        ({"metadata": {"row": 7}}, 400, "bad_settings", "metadata.row"),
        ({"metadata": {"a" * 65: "7"}}, 400, "bad_settings", None),
        ({"metadata": {"row": "a" * 513}}, 400, "bad_settings", "metadata.row"),
        ({"metadata": {str(number): "7" for number in range(17)}}, 400, "bad_settings", "metadata"),
        ({"max_completion_tokens": 1.5}, 400, "bad_settings", "max_completion_tokens"),
        ({"stop": ["a"] * 9}, 400, "bad_settings", "stop"),
        ({"num_frames": 0}, 400, "bad_settings", "num_frames"),
        ({"num_frames": 10**9}, 400, "bad_settings", "num_frames"),
        ({"num_frames": 4, "fps": 1}, 400, "bad_settings", "fps"),
        ({"fps": 0}, 400, "bad_settings", "fps"),
        ({"start_s": 5, "end_s": 5}, 400, "bad_settings", "start_s"),
        ({"end_s": True}, 400, "bad_settings", "end_s"),
        ({"reducer": "nothing"}, 400, "bad_settings", None),
        ({"reducer": 5}, 400, "bad_settings", "reducer"),
        ({"path": "nowhere"}, 400, "bad_settings", None),
        ({"spans_of": 1}, 400, "bad_settings", "spans_of"),
        ({"response_format": {"type": "yaml"}}, 400, "bad_settings", None),
        ({"response_format": {"type": "json_schema"}}, 400, "bad_settings", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(post, changes, status, code, param, stream):
    body = asked(**changes)
    if stream and "stream" not in changes and "stream_options" not in changes:
        body["stream"] = True
    refused(post("/v1/chat/completions", body), status, code, param)


def test_messages_are_counted_before_they_are_read(server):
    message = json.dumps({"role": "assistant", "content": []})
    for path, name in (("/v1/chat/completions", "messages"), ("/v1/responses", "input")):
        body = f'{{"model": "tiny", "{name}": [{",".join([message] * 80_000)}]}}'
        answer = httpx.post(f"{server.url}{path}", content=body, timeout=60)
        assert "1 to 20 messages, not 80000" in refused(answer, 400, "bad_request", name)


@pytest.mark.parametrize(
    "stage",
    [
        {"context": "razor:heads=FILE"},
        {"context": ["h2o", "doublesparse:channels=FILE"]},
        {"reducer": "cdpruner:keep=4,source=FILE"},
        {"path": "tdc:question_source=FILE"},
    ],
)
def test_a_stage_opens_no_file_that_a_client_names(post, stage, tmp_path):
    file = tmp_path / "file"
    file.write_text("no calibration")
    body = json.loads(json.dumps(asked(**stage)).replace("FILE", str(file)))
    message = refused(post("/v1/chat/completions", body), 400, "bad_settings")
    assert "opens no other files" in message
    assert str(tmp_path) not in message
    assert post("/v1/chat/completions", asked(context="h2o:recent=0.3")).status_code == 200


@pytest.mark.parametrize("method", ["flash", "fastdraft", "s2d", "hamburger", "hidden-transfer", "longspec", "ppd"])
def test_a_method_that_needs_a_file_says_that_a_request_cannot_give_it(post, method):
    message = refused(post("/v1/chat/completions", asked(decoding=method)), 400, "bad_settings", "decoding")
    assert "draft" in message
    assert "a request cannot give draft: do without it, or ask for another method" in message
    assert "__init__" not in message


def test_a_policy_that_needs_a_file_is_set_when_the_server_starts(post):
    message = refused(post("/v1/chat/completions", asked(context="razor")), 400, "bad_settings")
    assert "cannot give heads: set razor when the server starts" in message


def test_a_schema_that_asks_for_something_else(post):
    schema = {"type": "object", "properties": {"weather": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert "weather" in refused(post("/v1/chat/completions", asked(response_format=form)), 400, "bad_settings")


def nested(levels):
    """A schema of an answer with a choice in a choice."""
    part = {"type": "string"}
    for _ in range(levels):
        part = {"anyOf": [{"type": "null"}, part]}
    return {"properties": {"answer": part}}


class Span(pydantic.BaseModel):
    start_s: float = pydantic.Field(ge=0, description="seconds")
    end_s: float


class Begin(pydantic.BaseModel):
    start_s: float


ALLOWED = {
    "whole": {"answer": (str, ...), "spans": (list[Span], ...)},
    "spans": {"spans": (list[Span], ...)},
    "none": {"spans": (list[Span] | None, None), "answer": (str | None, None)},
    "mappings": {"spans": (list[dict[str, float]], ...)},
    "anything": {"answer": (typing.Any, ...), "spans": (list, ...)},
}
REFUSED = {
    "pairs": ({"spans": (list[tuple[float, float]], ...)}, "/type must be object, not 'array'"),
    "lists": ({"spans": (list[list[float]], ...)}, "#/properties/spans/items/type must be object, not 'array'"),
    "flag": ({"answer": (bool, ...)}, "#/properties/answer/type must be string, not 'boolean'"),
    "numbers": ({"answer": (int | float, ...)}, "#/properties/answer/anyOf/0/type must be string, not 'integer'"),
    "one": ({"spans": (Span, ...)}, "#/$defs/Span/type must be array, not 'object'"),
    "begin": ({"spans": (list[Begin], ...)}, "#/$defs/Begin/additionalProperties does not allow 'end_s'"),
    "choice": ({"answer": (typing.Literal["yes", "no"], ...)}, "#/properties/answer/enum is no rule"),
    "pattern": ({"answer": (typing.Annotated[str, pydantic.Field(pattern="a")], ...)}, "/pattern is no rule"),
    "short": ({"spans": (typing.Annotated[list[Span], pydantic.Field(min_length=1)], ...)}, "/minItems is no rule"),
    "words": ({"spans": (list[dict[str, str]], ...)}, "#/properties/spans/items/additionalProperties does not"),
    "other": ({"answer": (str, ...), "weather": (str, "")}, "not 'weather'"),
}


@pytest.mark.parametrize("kind", [*ALLOWED, *REFUSED])
def test_a_schema_is_met_or_refused(client, kind, short_clip):
    fields, reason = REFUSED.get(kind) or (ALLOWED[kind], None)
    model = pydantic.create_model("When", **fields)
    asked = {"model": "tiny", "messages": about(short_clip)}
    if reason is None:
        form = {"type": "json_schema", "json_schema": {"name": "when", "schema": model.model_json_schema()}}
        content = client.chat.completions.create(**asked, response_format=form).choices[0].message.content
        assert set(json.loads(content)) == set(fields)
        model.model_validate_json(content)
    else:
        with pytest.raises(openai.BadRequestError, match=re.escape(reason)):
            client.chat.completions.parse(**asked, response_format=model)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"spans": {}}, "required": ["weather"]}, "#/required names 'weather'; there is spans only"),
        ({"type": "array", "properties": {"spans": {}}}, "#/type must be object"),
        ({"properties": {"answer": {"$ref": "#/$defs/no"}}}, "#/$defs/no must be a schema of the type string"),
        ({"properties": {"answer": {"$ref": "#/properties/answer"}}}, "refers to itself"),
        ({"properties": {"answer": {"$ref": ["x"]}}}, "must be a schema"),
        ({"properties": {"answer": {"allOf": [{"type": "string"}, {"type": "null"}]}}}, "answer/allOf/1/type must be"),
        ({"properties": {"answer": {"anyOf": []}}}, "answer/anyOf must be a list"),
        ({"properties": {"answer": False}}, "#/properties/answer must be a schema"),
        ({"properties": {"answer": {"type": {"x": 1}}}}, "answer/type must be string"),
        ({"properties": {"spans": {"items": {"required": ["length_s"]}}}}, "items/required names 'length_s'"),
        ({"properties": {"spans": {"items": {"properties": {"start_s": {"type": "integer"}}}}}}, "must be number"),
        ({"properties": {"spans": {"items": {"properties": [1]}}}}, "properties must be an object"),
        ({"properties": {"answer": {"type": "string", "format": "email"}}}, "answer/format is no rule"),
        ({"properties": {"spans": {"items": {"properties": {"start_s": {"format": "int32"}}}}}}, "format is no"),
        ({"properties": ["answer"]}, "not 'nothing'"),
        ({"$ref": "#"}, "not 'nothing'"),
        ({}, "not 'nothing'"),
        (nested(40), "nested in more than 32 levels"),
    ],
)
def test_schemas_that_are_not_met(post, schema, reason):
    form = {"type": "json_schema", "name": "when", "schema": schema}
    body = {"model": "tiny", "input": "When?", "text": {"format": form}}
    assert reason in refused(post("/v1/responses", body), 400, "bad_settings", "text.format.schema")


def test_schemas_that_are_met(post):
    text = {"type": ["string", "null"]}
    for schema in (
        {"properties": {"answer": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": text}},
        {"properties": {"answer": {"oneOf": [{"type": "null"}, text]}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"answer": text}, "required": ["answer"], "x-order": 1}}},
        {"properties": {"answer": nested(20)["properties"]["answer"]}},
        {"properties": {"answer": {"description": "a sentence"}}, "title": "Answer"},
    ):
        form = {"type": "json_schema", "name": "when", "schema": schema, "strict": True}
        answer = post("/v1/responses", {"model": "tiny", "input": "When?", "text": {"format": form}})
        assert list(json.loads(answer.json()["output"][0]["content"][0]["text"])) == ["answer"]
    seconds = {"type": "number", "format": "double", "minimum": 0}
    span = {"type": "object", "properties": {"start_s": seconds, "end_s": seconds}, "required": ["start_s", "end_s"]}
    form = {"type": "json_schema", "name": "when", "schema": {"properties": {"spans": {"items": span}}}}
    assert post("/v1/responses", {"model": "tiny", "input": "When?", "text": {"format": form}}).status_code == 200
    for form in ({"type": "json_object", "schema": {}}, {"type": "text", "strict": 1}):
        refused(post("/v1/chat/completions", asked(response_format=form)), 400, "unknown_parameter")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", b'"a"', b"null"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_bodies_that_are_no_object(server, body, path):
    refused(httpx.post(f"{server.url}{path}", content=body), 400, "bad_request")


HUGE, HALF = 10**400, "\ud800"
HARD = (HUGE, 1e300, 1e-300, [], {"type": {}}, [[["x"]]], HALF, {HALF: 1}, "\x00", "a" * 5000)
"""Values that some field cannot take."""
PARTS = ("type", "text", "image_url", "video_url", "file", "file_id", "detail", "fps", "reducer")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_no_value_of_a_field_fails_in_the_server(server, post, path):
    chat = path == "/v1/chat/completions"
    messages, text, most = ("messages", "text", "max_tokens") if chat else ("input", "input_text", "max_output_tokens")
    body = {"model": "tiny", most: 1, messages: [{"role": "user", "content": "When?"}]}
    known = re.findall(r"\w+", refused(post(path, {**body, "zzz": 1}), 400).split("known: ")[1])
    assert len(known) > 15
    bodies = [{**body, name: value} for name in known for value in HARD]
    for name in PARTS:
        for value in HARD:
            part = {"type": text, "text": "When?", name: value}
            bodies += [{**body, messages: [{"role": "user", "content": [part]}]}]
            bodies += [{**body, messages: [{"role": "user", "content": "When?", name: value}]}]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for sent in map(json.dumps, bodies):
            answer = client.post(path, content=sent)
            assert answer.status_code < 500, (sent, answer.text)


def test_half_a_letter_is_no_text(server):
    def send(body):
        return httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=60)

    whole = json.dumps(asked(messages=[{"role": "user", "content": "\U0001f600?"}]))
    assert "\\ud83d\\ude00" in whole
    assert send(whole).status_code == 200
    for half in (whole.replace("\\ude00", ""), whole.replace("\\ud83d", ""), whole.replace("model", "\\ud83d")):
        assert re.search(r"\\ud83d|\\ude00", refused(send(half), 400, "bad_request"))
    refused(send(whole.encode().replace(rb"\ud83d\ude00", b"\xed\xa0\x80")), 400, "bad_request")
    refused(send(whole.replace("\\ude00", "").encode("utf-16")), 400, "bad_request")


@pytest.mark.parametrize("temperature", [1e-300, 1e-6])
def test_the_smallest_temperatures_are_greedy(post, short_clip, temperature):
    def said(**changes):
        answer = post("/v1/responses", {"model": "tiny", "input": inputs(short_clip), **changes}).json()
        return answer["output"][0]["content"], answer["temperature"]

    assert said(temperature=temperature) == said() == said(temperature=0)
    assert said(temperature=1e-5)[1] == 1e-5


def test_numbers_that_are_none(server):
    body = json.dumps(asked(temperature=math.nan, start_s=math.inf))
    refused(httpx.post(f"{server.url}/v1/chat/completions", content=body), 400, "bad_settings")


def test_settings_that_the_video_does_not_allow(post, short_clip):
    def send(**changes):
        return post("/v1/chat/completions", {"model": "tiny", "messages": about(short_clip), **changes})

    assert "at most 40" in refused(send(fps=30), 400)
    assert "no part from" in refused(send(start_s=100, end_s=200), 400)
    many = [{"role": "user", "content": [*about(short_clip)[0]["content"][:1] * 5, {"type": "text", "text": "When?"}]}]
    assert "at most 4" in refused(post("/v1/chat/completions", asked(messages=many)), 400)
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "num_frames": 3}]
    refused(post("/v1/chat/completions", asked(messages=[{"role": "user", "content": image}])), 400, "bad_settings")
    assistant = [
        {"role": "assistant", "content": about(short_clip)[0]["content"]},
        {"role": "user", "content": "When?"},
    ]
    refused(post("/v1/chat/completions", asked(messages=assistant)), 400, "bad_request")


@pytest.mark.parametrize(
    "changes",
    [
        {"input": None},
        {"input": []},
        {"input": [{"role": "user", "content": "When?"}] * 21},
        {"input": [{"role": "user", "content": []}, {"role": "user", "content": "When?"}]},
        {"input": [{"type": "function_call"}]},
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"previous_response_id": "resp_1"},
        {"store": True},
        {"text": {"format": {"type": "grammar"}}},
        {"text": {"shape": 1}},
        {"max_output_tokens": 0},
        {"instructions": 5},
        {"metadata": [1]},
        {"text": {"verbosity": 17}},
        {"text": {"verbosity": "chatty"}},
        {"text": 5},
    ],
)
def test_wrong_responses(post, changes):
    refused(post("/v1/responses", {"model": "tiny", "input": "When?", **changes}), 400)


@pytest.mark.parametrize("kind", ["input_video", "input_image", "input_file"])
def test_a_part_has_one_address(post, short_clip, kind):
    name = "file_data" if kind == "input_file" else f"{kind.removeprefix('input_')}_url"
    part = {"type": kind, "file_id": "file-" + "0" * 24, name: data(short_clip)}
    content = [part, {"type": "input_text", "text": "When?"}]
    answer = post("/v1/responses", {"model": "tiny", "input": [{"role": "user", "content": content}]})
    message = refused(answer, 400, "bad_request", f"input[0].content[0].{name}")
    assert "left out beside file_id" in message
    assert len(message) < 300
    file = {"file_id": "file-" + "0" * 24, "file_data": data(short_clip)}
    content = [{"type": "file", "file": file}, {"type": "text", "text": "When?"}]
    refused(post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}])), 400, "bad_request")


def test_the_detail_of_a_picture_is_a_word_of_openai(post, picture):
    def send(detail):
        part = {"type": "input_image", "image_url": data(picture, "image/png"), "detail": detail}
        content = [part, {"type": "input_text", "text": "What?"}]
        chat = [{"type": "image_url", "image_url": {"url": part["image_url"], "detail": detail}}]
        chat.append({"type": "text", "text": "What?"})
        return (
            post("/v1/responses", {"model": "tiny", "input": [{"role": "user", "content": content}]}),
            post("/v1/chat/completions", asked(messages=[{"role": "user", "content": chat}])),
        )

    assert [answer.status_code for answer in send("low")] == [200, 200]
    for detail in ("nonsense", 5, ["low"]):
        for answer in send(detail):
            assert "auto, low, high or original" in refused(answer, 400, "bad_settings")


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="tiny") as problem:
        client.chat.completions.create(model="huge", messages=[{"role": "user", "content": "When?"}])
    assert problem.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[], stream=True)


def test_an_unknown_field_is_told_the_fields_that_there_are(post):
    message = refused(post("/v1/chat/completions", asked(zzz=1)), 400, "unknown_parameter", "zzz")
    assert {"reducer", "context", "decoding", "path", "spans_of"} <= set(re.findall(r"\w+", message))


def test_paths_and_methods_that_are_not_there(server):
    for path in ("/v1/nothing", "/docs", "/openapi.json", "/v1/nothing/\N{EURO SIGN}"):
        assert "/v1/responses" in refused(httpx.get(f"{server.url}{path}"), 404, "not_found")
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/responses", "POST"),
        ("PUT", "/v1/files", "GET, POST"),
        ("PATCH", "/v1/files/file-1", "DELETE, GET"),
        ("POST", "/health", "GET"),
    ):
        answer = httpx.request(method, f"{server.url}{path}")
        assert refused(answer, 405, "method_not_allowed") == f"'{path}' takes {allowed}, not {method}"
    assert refused(httpx.get(f"{server.url}/v1/models/huge"), 404, "model_not_found")


def test_files_that_are_none(post, tmp_path, short_clip):
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    for address in (
        "data:video/mp4;base64,§§§",
        "data:video/mp4;base64,AAA",
        "data:video/mp4,plain",
        "data:",
        data(empty),
        f"data:video/mp4;base64,{base64.b64encode(b'no video').decode()}",
    ):
        part = {"type": "video_url", "video_url": {"url": address}}
        content = [part, {"type": "text", "text": "When?"}]
        answer = post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}]))
        refused(answer, 400, "bad_media", "messages[0].content[0]" if "no video" in address else None)
