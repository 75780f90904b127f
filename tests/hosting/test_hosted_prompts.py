"""Conversations with hosted models: a video, an image, or text alone; two media at once are refused."""

import numpy as np
import pytest
import torch
from tiny_models import CASES
from tiny_processors import processor

from mmllm.errors import InputError
from mmllm.hosting.model import HostedModel
from mmllm.inference.conversations import prompts_of
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.prompts import Medium, PromptTooLong, Turn
from mmllm.tokens import VideoClip

NO_PLACEHOLDERS = {"suppress_tokens": [190, 191]}
NAMES = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "gemma3"]
PIXELS = np.random.default_rng(5).integers(0, 255, (32, 48, 3), dtype=np.uint8)


def conversations(name, **settings):
    """Conversations with a tiny model."""
    hosted = HostedModel(CASES[name].model, processor(name), **settings)
    return prompts_of(HostedVideoQA(hosted, max_new_tokens=6))


def video(prompts):
    """A video as the model's tower sees it."""
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    clip = VideoClip(frames=frames, times_s=np.array([0.0, 0.5, 1.0, 1.5]), duration_s=4.0)
    return Medium(kind="video", encoded=prompts.qa.encode_video(clip))


def user(*content):
    return Turn(role="user", content=content)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reducers", [(), ("uniform:ratio=0.5",)])
def test_a_question_about_a_video_is_that_of_ask(name, reducers):
    prompts = conversations(name, reducers=reducers)
    medium = video(prompts)
    prompt = prompts.prompt([user(medium, "When does it open?")])
    ids = prompts.generate([prompt], **NO_PLACEHOLDERS)[0].tolist()
    answer = prompts.qa.ask(medium.encoded, "When does it open?", **NO_PLACEHOLDERS)
    assert prompts.answer(prompt, ids) == answer
    history = [
        Turn(role="system", content=("Be short.",)),
        user(medium, "Who?"),
        Turn(role="assistant", content=("He.",)),
    ]
    later = prompts.prompt([*history, user("When?")])
    expected = prompts.qa.ask_all(
        medium.encoded, ["When?"], histories=[[("Who?", "He.")]], systems=["Be short."], **NO_PLACEHOLDERS
    )
    assert prompts.answer(later, prompts.generate([later], **NO_PLACEHOLDERS)[0].tolist()) == expected[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_question_about_an_image_is_that_of_transformers(name):
    prompts = conversations(name)
    medium = Medium(kind="image", encoded=prompts.picture(PIXELS))
    prompt = prompts.prompt([user(medium, "What is it?")])
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor(name).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(name)(text=[text], images=[PIXELS], return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2, **NO_PLACEHOLDERS}
    ids = CASES[name].model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(prompts.generate([prompt], **NO_PLACEHOLDERS), ids)
    assert prompt.watched is None
    assert prompt.usage["image_tokens"] > 0
    assert prompt.usage["video_tokens"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_text_alone_is_answered_as_transformers_answers_it(name):
    prompts = conversations(name)
    prompt = prompts.prompt([user("Who are you?")])
    content = [{"type": "text", "text": "Who are you?"}]
    text = processor(name).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(name)(text=[text], return_tensors="pt")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2, **NO_PLACEHOLDERS}
    ids = CASES[name].model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(prompts.generate([prompt], **NO_PLACEHOLDERS), ids)
    assert prompts.answer(prompt, ids[0].tolist()).spans == ()


def test_two_media_and_long_prompts_are_refused():
    prompts = conversations("qwen3_vl")
    medium = video(prompts)
    with pytest.raises(InputError, match="2 videos and images"):
        prompts.prompt([user(medium, medium, "When?")])
    with pytest.raises(PromptTooLong):
        prompts.prompt([user(medium, "When? " * 40_000)])
