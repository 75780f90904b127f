"""Whatever is given in place of media, text, options or ids is read or refused by a short typed error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmllm.errors import MmllmError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words

FRAMES = np.zeros((4, 8, 8, 3), np.uint8)
IDS = torch.tensor([[5, 6]])


def cut_off():
    file = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(file, "png")
    return file.getvalue()[:40]


JUNK = [
    *(0, -1, 1.5, True, 10**400, float("nan"), "", "a\0b", "data:,", "file://", "http://x", "A" * 400, b"", cut_off()),
    *({}, {"a": 1}, set(), object(), len, [], [None], [[]], [[None]], [1], [["a", 3]], range(3), iter([1])),
    *(np.array("x"), np.array([]), np.array([[None]]), np.zeros((2,) * 6), FRAMES.astype(complex), FRAMES[0]),
    *(
        torch.zeros(0),
        torch.zeros(4, 3, 8, 8).to_sparse(),
        Image.new("RGB", (0, 5)),
        [FRAMES[0], FRAMES],
        [FRAMES, None],
    ),
    *((FRAMES, {}), (FRAMES, {"fps": 5, "frames_indices": "abc"}), (FRAMES, {3: 4}), io.StringIO("a"), io.BytesIO(b"")),
]


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(["when", "?"])
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_frames=4, num_time_tokens=10)


def asked(*content):
    return [{"role": "user", "content": list(content)}]


def chat(processor, messages):
    return processor.apply_chat_template(messages, tokenize=True)


MEDIA = {
    "images": lambda processor, junk: processor(text="<image> a", images=junk),
    "images of texts": lambda processor, junk: processor(text=["<image>", "<image>"], images=[junk, FRAMES[0]]),
    "videos": lambda processor, junk: processor(text="<video> a", videos=junk, fps=5),
    "image item": lambda processor, junk: chat(processor, asked({"type": "image", "image": junk})),
    "video item": lambda processor, junk: chat(processor, asked({"type": "video", "path": junk})),
    "base64": lambda processor, junk: chat(processor, asked({"type": "image", "base64": junk})),
    "image_url": lambda processor, junk: chat(processor, asked({"type": "image_url", "image_url": junk})),
    "item": lambda processor, junk: chat(processor, asked(junk)),
    "type": lambda processor, junk: chat(processor, asked({"type": junk})),
    "content": lambda processor, junk: chat(processor, [{"role": "user", "content": junk}]),
    "role": lambda processor, junk: chat(processor, [{"role": junk, "content": "a"}]),
    "conversation": chat,
    "template": lambda processor, junk: processor.apply_chat_template(asked({"type": "text", "text": "a"}), junk),
    "text": lambda processor, junk: processor(text=junk),
}
OPTIONS = (
    *("num_frames", "fps", "start_s", "end_s", "video_metadata", "do_sample_frames", "max_pixels", "padding"),
    *("padding_side", "truncation", "max_length", "pad_to_multiple_of", "return_tensors", "add_special_tokens"),
    *("return_attention_mask", "videos_kwargs", "unknown"),
)


def allowed(call):
    message = ""
    try:
        call()
    except MmllmError as problem:
        message = str(problem)
    assert len(message) < 1000


@pytest.mark.parametrize("place", MEDIA)
def test_junk_in_place_of_media_and_messages(processor, place):
    for junk in JUNK:
        allowed(lambda junk=junk: MEDIA[place](processor, junk))


@pytest.mark.parametrize("option", OPTIONS)
def test_junk_in_place_of_options(processor, option):
    for junk in JUNK:
        allowed(lambda junk=junk: processor(text="<video> a", videos=[FRAMES], **{"fps": 5, option: junk}))


def test_junk_in_place_of_ids_and_lengths(processor):
    for junk in JUNK:
        if isinstance(junk, torch.Tensor) and junk.is_sparse:
            continue
        allowed(lambda junk=junk: processor.decode(junk))
        allowed(lambda junk=junk: processor.batch_decode(junk, [5.0]))
        allowed(lambda junk=junk: processor.batch_decode(IDS, junk))
        allowed(lambda junk=junk: processor.batch_decode(IDS, inputs=junk))
