"""transformers' pipelines with the processor: chats, prefilled answers, and batches that give what rows give alone."""

import sys

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from versions import OLD_TRANSFORMERS

PICTURES = [Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)) for seed in range(2)]
FRAMES = np.random.default_rng(0).integers(0, 255, (12, 40, 60, 3), dtype=np.uint8)
OPTIONS = {"max_new_tokens": 6, "return_full_text": False}


@pytest.fixture(scope="module", params=["image-text-to-text", "any-to-any"])
def pipe(request, untrained_qa):
    return pipeline(
        request.param, model=untrained_qa.model, processor=untrained_qa.processor, device="cpu", do_sample=False
    )


def chat(item, question="When does the red circle spin?"):
    return [{"role": "user", "content": [item, {"type": "text", "text": question}]}]


MEDIA = {
    "images": [{"type": "image", "image": picture} for picture in PICTURES],
    "videos": [{"type": "video", "video": frames, "fps": 4.0} for frames in (FRAMES, 255 - FRAMES)],
}


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_each_chat_gives_alone(pipe, kind, side):
    chats = [chat(MEDIA[kind][0]), chat(MEDIA[kind][1], "When?")]
    alone = [pipe(text=one, **OPTIONS)[0]["generated_text"] for one in chats]
    pipe.tokenizer.padding_side = side
    try:
        together = pipe(text=chats, batch_size=2, **OPTIONS)
    finally:
        pipe.tokenizer.padding_side = "right"
    assert [row[0]["generated_text"] for row in together] == alone


def test_texts_with_images_and_texts_alone(pipe):
    one = pipe(images=PICTURES[0], text="<image> When?", **OPTIONS)[0]["generated_text"]
    both = pipe(images=PICTURES, text=["<image> When?", "<image> When does it spin?"], **OPTIONS)
    assert both[0]["generated_text"] == one
    assert isinstance(pipe(text="When?", **OPTIONS)[0]["generated_text"], str)


def test_an_answer_is_continued_and_options_reach_the_processor(pipe):
    begun = [*chat(MEDIA["videos"][0]), {"role": "assistant", "content": [{"type": "text", "text": "The red"}]}]
    assert isinstance(pipe(text=begun, **OPTIONS)[0]["generated_text"], str)
    own_chat = sys.modules[type(pipe).__module__].Chat
    inputs = pipe.preprocess(own_chat(chat(MEDIA["videos"][0])), num_frames=3)
    assert inputs["pixel_values_videos"].shape[:2] == (1, 3)
    if OLD_TRANSFORMERS:
        return
    several = pipe(
        text=chat(MEDIA["videos"][0]), generate_kwargs={"num_beams": 2, "num_return_sequences": 2}, **OPTIONS
    )
    assert len(several) == 2
