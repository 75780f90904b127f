"""Ids become answers where lengths are known, texts where they are not, and never times of another video."""

import threading

import numpy as np
import pytest
import torch
from transformers import TextIteratorStreamer

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer("when does the red circle spin ? . answer :".split())
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_frames=2, num_time_tokens=10)


@pytest.fixture(scope="module")
def ids(processor):
    words = ["<t3>", "<t9>", "the", "circle", ".", "</s>", "<pad>"]
    return torch.tensor(processor.tokenizer.convert_tokens_to_ids(words))


def clip(seconds):
    return VideoClip(frames=np.zeros((2, 32, 32, 3), np.uint8), times_s=np.arange(2.0), duration_s=seconds)


def asked(*seconds):
    videos = [{"type": "video", "video": clip(one)} for one in seconds]
    return [{"role": "user", "content": [*videos, {"type": "text", "text": "when ?"}]}]


def spans(answers):
    return [[span.to_json() for span in answer.spans] for answer in answers]


def test_without_lengths_ids_are_text_as_the_tokenizer_writes_it(processor, ids):
    assert processor.decode(ids) == "<t3> <t9> the circle. </s> <pad>"
    assert processor.decode(ids.tolist(), skip_special_tokens=True) == "<t3> <t9> the circle."
    rows = torch.stack([ids, ids])
    for given in (rows, rows.numpy(), rows.tolist(), list(rows)):
        assert processor.batch_decode(given, skip_special_tokens=True) == ["<t3> <t9> the circle."] * 2
        assert processor.decode(given, skip_special_tokens=True) == ["<t3> <t9> the circle."] * 2
    assert processor.post_process_image_text_to_text(rows) == ["<t3> <t9> the circle."] * 2


def test_each_row_has_its_own_length_and_a_row_without_video_no_span(processor, ids):
    rows = torch.stack([ids, ids])
    assert spans(processor.batch_decode(rows, torch.tensor([9.0, 18.0]))) == [[[3, 9]], [[6, 18]]]
    assert spans(processor.batch_decode(rows, 9)) == [[[3, 9]], [[3, 9]]]
    with_text = processor.batch_decode(rows, [9.0, None])
    assert spans(with_text) == [[[3, 9]], []]
    assert with_text[1].text == "<t3> <t9> the circle."
    assert (
        spans([processor.decode(ids, seconds) for seconds in (9, np.float32(9), torch.tensor([9.0]))]) == [[[3, 9]]] * 3
    )


def test_inputs_say_which_row_has_a_video_and_where_the_prompt_ends(processor, ids):
    batch = [asked(9.0), asked(), asked(18.0)]
    inputs = processor.apply_chat_template(batch, tokenize=True, add_generation_prompt=True)
    expected = [[[3, 9]], [], [[6, 18]]]
    new = torch.stack([ids] * 3)
    assert spans(processor.batch_decode(new, inputs=inputs)) == expected
    whole = torch.cat([inputs["input_ids"], new], dim=1)
    assert processor.batch_decode(whole, inputs=inputs)[0].text == "the circle."
    assert spans(processor.batch_decode(whole, inputs=inputs)) == expected
    several = whole.repeat_interleave(2, dim=0)  # num_return_sequences=2
    assert spans(processor.batch_decode(several, inputs=inputs)) == [one for one in expected for _ in range(2)]
    as_arrays = processor.apply_chat_template(batch, tokenize=True, add_generation_prompt=True, return_tensors="np")
    assert spans(processor.batch_decode(whole.numpy(), inputs=as_arrays)) == expected
    assert spans(processor.batch_decode(new, [1.0, None, 9.0], inputs=inputs)) == [[[0.33, 1]], [], [[3, 9]]]


def test_times_of_two_videos_in_a_row_are_refused_until_one_is_named(processor, ids):
    inputs = processor.apply_chat_template([asked(9.0, 18.0), asked(4.5)], tokenize=True)
    rows = torch.stack([ids, ids])
    with pytest.raises(InputError, match=r"row 0 has 2 videos, .* give durations_s"):
        processor.batch_decode(rows, inputs=inputs)
    with pytest.raises(InputError, match="2 rows and 3 durations"):
        processor.batch_decode(rows, inputs["video_durations_s"])


@pytest.mark.parametrize(
    ("durations_s", "keywords", "message"),
    [
        ([9.0], {}, "2 rows and 1 durations: give one for each row"),
        ([9.0, 9.0, 9.0], {}, "2 rows and 3 durations"),
        (torch.tensor([9.0, 9.0], dtype=torch.bfloat16), {}, "durations in bfloat16 are off by seconds"),
        (True, {}, "a number of seconds, not True"),
        ([0.0, 9.0], {}, "positive number of seconds"),
        (9.0, {"skip_special_tokens": False}, "skip_special_tokens=False is for plain text"),
        (None, {"skip_special_token": True}, "no 'skip_special_token'; did you mean 'skip_special_tokens'"),
        (None, {"inputs": 3}, "inputs must be what the processor returned"),
    ],
)
def test_what_does_not_fit_is_refused(processor, ids, durations_s, keywords, message):
    with pytest.raises(InputError, match=message):
        processor.batch_decode(torch.stack([ids, ids]), durations_s, **keywords)


def test_rows_that_are_no_multiple_of_the_prompts_are_refused(processor, ids):
    inputs = processor.apply_chat_template([asked(9.0), asked(18.0)], tokenize=True)
    with pytest.raises(InputError, match="3 rows of ids are no multiple of the 2 prompts"):
        processor.batch_decode(torch.stack([ids] * 3), inputs=inputs)
    with pytest.raises(InputError, match="for the ids of one answer call decode"):
        processor.batch_decode(ids, [9.0])
    with pytest.raises(InputError, match="a list of whole numbers, not 'the circle'"):
        processor.decode("the circle", 9.0)


def test_a_streamer_takes_the_processor(untrained_qa, short_clip):
    processor = untrained_qa.processor
    messages = [{"role": "user", "content": [{"type": "video", "path": str(short_clip)}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    options = {"max_new_tokens": 8, "do_sample": False}
    streamer = TextIteratorStreamer(processor, skip_prompt=True, skip_special_tokens=True, timeout=120)
    thread = threading.Thread(target=untrained_qa.model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    ids = untrained_qa.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert streamed == processor.decode(ids, skip_special_tokens=True)
