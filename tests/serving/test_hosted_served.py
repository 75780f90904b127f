"""A model that transformers runs, behind the server: a video, an image, text alone; two media at once are refused."""

import httpx
import pytest
from running_server import about, asked, data, refused, served
from tiny_models import CASES
from tiny_processors import processor

from mmllm.hosting.model import HostedModel
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_prompts import HostedPrompts
from mmllm.serving.answer_forms import spans_of

NO_PLACEHOLDERS = {"suppress_tokens": [190, 191]}
QUESTION = "When is it at 2.5 s?"


@pytest.fixture(scope="module")
def qa():
    return HostedVideoQA(HostedModel(CASES["qwen3_vl"].model, processor("qwen3_vl")), max_new_tokens=6)


@pytest.fixture(scope="module")
def ask(qa, limits):
    """Sends messages to a server of the model."""
    generate = HostedPrompts.generate

    def words_only(self, prompts, **options):
        return generate(self, prompts, **options, **NO_PLACEHOLDERS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostedPrompts, "generate", words_only)
        with served({"tiny": qa}, limits) as ready:
            yield lambda messages, **changes: httpx.post(
                f"{ready.url}/v1/chat/completions", json=asked(messages=messages, **changes), timeout=120
            )


def test_a_video_is_answered_as_without_a_server(ask, qa, short_clip):
    reply = ask(about(short_clip, QUESTION, num_frames=4)).json()
    encoded = qa.encode_video(short_clip, num_frames=4)
    expected = qa.ask(encoded, "When is it at <2.5>?", **NO_PLACEHOLDERS)
    message, details = reply["choices"][0]["message"], reply["usage"]["prompt_tokens_details"]
    assert message["content"] == expected.raw
    assert message["spans"] == spans_of(expected)
    assert details["video_tokens"] == encoded.token_counts["video"]
    assert details["frames"] == 4
    half = ask(about(short_clip, QUESTION, num_frames=4), reducer="uniform:ratio=0.5").json()["usage"]
    assert half["prompt_tokens_details"]["video_tokens"] * 2 == details["video_tokens"]
    assert half["prompt_tokens"] == reply["usage"]["prompt_tokens"] - details["video_tokens"] // 2


def test_an_image_and_text_alone(ask, picture):
    image = {"type": "image_url", "image_url": {"url": data(picture, "image/png")}}
    reply = ask([{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}])
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert ask([{"role": "user", "content": "Who are you?"}]).json()["choices"][0]["message"]["spans"] == []


def test_two_videos_are_refused(ask, short_clip):
    (video, question) = about(short_clip)[0]["content"]
    answer = ask([{"role": "user", "content": [video, video, question]}])
    assert "one at a time" in refused(answer, 400, "bad_request")
