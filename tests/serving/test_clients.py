"""Other clients of OpenAI's interface, where they are installed: LangChain by a schema, LiteLLM."""

import json

import pytest
from running_server import QUESTION, about, served

from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.serving.answer_forms import spans_of


@pytest.fixture(scope="module")
def qa():
    """The model that comes with mmllm: clients raise an error for answers that do not end."""
    return VideoQA.from_pretrained(DEFAULT)


@pytest.fixture(scope="module")
def server(qa, limits):
    with served({"tiny": qa}, limits) as ready:
        yield ready


@pytest.fixture(scope="module")
def spans(qa, short_clip):
    """The spans that the model names without a server."""
    found = spans_of(qa.ask(qa.encode_video(short_clip, num_frames=40), QUESTION))  # as many as the limits allow
    assert found
    return found


def test_langchain_gets_spans_by_a_schema(server, short_clip, spans):
    langchain_openai = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    messages = pytest.importorskip("langchain_core.messages")
    schema = {
        "title": "answer",
        "type": "object",
        "properties": {
            "answer": {"type": "string"},
            "spans": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"start_s": {"type": "number"}, "end_s": {"type": "number"}},
                },
            },
        },
    }
    llm = langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="any", model="tiny", temperature=0, max_retries=0, use_responses_api=False
    )
    message = messages.HumanMessage(content=about(short_clip)[0]["content"])
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = llm.bind(response_format=form).invoke([message])
    assert json.loads(reply.content)["spans"] == spans
    assert reply.usage_metadata["input_tokens"] > 0
    plain = llm.invoke([message])
    assert plain.content
    assert "".join(chunk.content for chunk in llm.stream([message])) == plain.content


def test_litellm_keeps_the_spans(server, short_clip, spans):
    litellm = pytest.importorskip("litellm", reason="pip install litellm")
    asked = {
        "model": "openai/tiny",
        "api_base": f"{server.url}/v1",
        "api_key": "any",
        "messages": about(short_clip),
        "num_retries": 0,
    }
    reply = litellm.completion(**asked)
    message = reply.choices[0].message
    assert message.content
    assert reply.usage.prompt_tokens > 0
    form = litellm.completion(**asked, response_format={"type": "json_object"})
    assert json.loads(form.choices[0].message.content)["spans"] == spans
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == message.content
