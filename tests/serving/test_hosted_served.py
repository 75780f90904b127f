"""A model that transformers runs, behind the server: a video, an image, text alone; two media at once are refused."""

import httpx
import pytest
from PIL import Image
from running_server import about, asked, data, refused, served
from tiny_models import CASES
from tiny_processors import processor

from mmllm.hosting.model import HostedModel
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_prompts import HostedPrompts
from mmllm.inference.prompts import Medium, Turn
from mmllm.inference.row_streaming import Row, answer_rows
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


def test_a_second_question_reads_the_question_only(ask, qa, short_clip, monkeypatch):
    def usage(question):
        return ask(about(short_clip, question, num_frames=6)).json()["usage"]

    first, second = usage(QUESTION), usage("When?")
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert second["prompt_tokens_details"]["video_tokens"] <= cached < second["prompt_tokens"]
    answers = [ask(about(short_clip, "When?", num_frames=6)).json()["choices"][0]["message"] for _ in range(2)]
    encoded = qa.encode_video(short_clip, num_frames=6)
    monkeypatch.setattr(qa, "keeps_prefix", False)
    alone = qa.ask(encoded, "When?", **NO_PLACEHOLDERS)
    assert [answer["content"] for answer in answers] == [alone.raw] * 2


def test_questions_about_one_video_are_rows_of_a_batch(ask, qa, short_clip):
    prompts = HostedPrompts(qa)
    first, second = (Medium(kind="video", encoded=qa.encode_video(short_clip, num_frames=4)) for _ in range(2))

    def prompt(*content):
        return prompts.prompt([Turn(role="user", content=content)])

    asked = [prompt(first, "When?"), prompt(first, QUESTION), prompt(first, "When does it spin?")]
    assert all(prompts.fits(asked[0], other) for other in asked)
    assert not prompts.fits(asked[0], prompt(second, "When?"))
    assert not prompts.fits(prompt("When?"), prompt("When?"))  # whole prompts are read one by one

    def answered(rows):
        taken = [[] for _ in rows]
        given = [Row(prompt=row, take=ids.append, most_tokens=6) for row, ids in zip(rows, taken, strict=True)]
        answer_rows(prompts, given)
        return taken

    together = answered(asked)
    assert together == [ids for row in asked for ids in answered([row])]


def test_a_decoding_method_writes_the_same_answer(ask, short_clip):
    plain, drafted = (
        ask(about(short_clip, QUESTION, num_frames=4), **more).json()["choices"][0]["message"]
        for more in ({}, {"decoding": "token-recycling"})
    )
    assert drafted["content"] == plain["content"]
    assert drafted["decoding"]["name"] == "token-recycling"
    refused(ask(about(short_clip, QUESTION, num_frames=4), decoding="spectr"), 400, "bad_settings", "decoding")


def test_an_image_and_text_alone(ask, picture):
    image = {"type": "image_url", "image_url": {"url": data(picture, "image/png")}}
    reply = ask([{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}])
    assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert ask([{"role": "user", "content": "Who are you?"}]).json()["choices"][0]["message"]["spans"] == []


def test_a_picture_of_a_line_is_refused(ask, tmp_path):
    Image.new("1", (1, 60_000)).save(tmp_path / "line.png")
    image = {"type": "image_url", "image_url": {"url": data(tmp_path / "line.png", "image/png")}}
    answer = ask([{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}])
    assert "cannot prepare 1 frames of 1 x 60000" in refused(answer, 400)


def test_two_videos_are_refused(ask, short_clip):
    (video, question) = about(short_clip)[0]["content"]
    answer = ask([{"role": "user", "content": [video, video, question]}])
    assert "one at a time" in refused(answer, 400, "bad_request")
