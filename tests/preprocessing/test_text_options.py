"""Padding, truncation and tensors as transformers' processors have them; what cannot be done is refused by name."""

import numpy as np
import pytest
import torch

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words

PIXELS = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def processor():
    tokenizer = word_tokenizer("when does it spin ? a b c d answer :".split())
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_time_tokens=10)


TEXTS = ["when does it spin ?", "a b"]


def test_texts_are_padded_to_the_longest_to_a_length_or_to_a_multiple(processor):
    whole = processor(text=TEXTS)
    assert whole["input_ids"].shape == (2, 5)
    assert whole["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    for padding in (True, "longest"):
        assert torch.equal(processor(text=TEXTS, padding=padding)["input_ids"], whole["input_ids"])
    assert processor(text=TEXTS, padding="max_length", max_length=9)["input_ids"].shape == (2, 9)
    assert processor(text=TEXTS, padding="max_length", max_length=3)["input_ids"].shape == (2, 5)
    assert processor(text=TEXTS, pad_to_multiple_of=4)["input_ids"].shape == (2, 8)
    for padding in (False, "do_not_pad"):
        assert processor(text=TEXTS[0], padding=padding)["input_ids"].shape == (1, 5)
        with pytest.raises(InputError, match="texts of 2 to 5 ids are no tensor without padding"):
            processor(text=TEXTS, padding=padding)


def test_padding_is_on_the_side_that_is_asked_for(processor):
    left = processor(text=TEXTS, padding_side="left")
    assert left["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    assert left["input_ids"][1, :3].tolist() == [processor.tokenizer.pad_token_id] * 3
    processor.tokenizer.padding_side = "left"
    assert torch.equal(processor(text=TEXTS)["input_ids"], left["input_ids"])
    assert processor(text=TEXTS, padding_side="right")["attention_mask"][1].tolist() == [1, 1, 0, 0, 0]
    messages = [[{"role": "user", "content": text}] for text in TEXTS]
    inputs = processor.apply_chat_template(messages, tokenize=True, padding_side="left", return_labels=True)
    assert inputs["attention_mask"][1, 0] == 0
    assert inputs["labels"].shape == inputs["input_ids"].shape


def test_both_sides_of_padding_give_the_same_answers(untrained_qa, short_clip):
    processor, model = untrained_qa.processor, untrained_qa.model
    video = {"type": "video", "path": str(short_clip), "num_frames": 4}
    batch = [
        [{"role": "user", "content": [video, {"type": "text", "text": text}]}]
        for text in ("When does the red circle spin around the blue square?", "When?")
    ]

    def answers(side):
        inputs = processor.apply_chat_template(batch, tokenize=True, add_generation_prompt=True, padding_side=side)
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return ids[:, inputs["input_ids"].shape[1] :].tolist()

    assert answers("left") == answers("right")


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first"])
def test_texts_are_cut_at_the_side_of_the_tokenizer(processor, truncation):
    ids = processor(text=TEXTS)["input_ids"]
    cut = processor(text=TEXTS, truncation=truncation, max_length=3)
    assert torch.equal(cut["input_ids"], ids[:, :3])
    assert cut["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    processor.tokenizer.truncation_side = "left"
    assert torch.equal(processor(text=TEXTS[0], truncation=truncation, max_length=3)["input_ids"], ids[:1, 2:])
    processor.tokenizer.model_max_length = 4
    assert processor(text=TEXTS, truncation=truncation)["input_ids"].shape == (2, 4)


def test_labels_are_cut_with_their_ids_and_a_placeholder_is_never_cut_off(processor):
    messages = [{"role": "user", "content": "when ?"}, {"role": "assistant", "content": "a b c d"}]
    options = {"tokenize": True, "return_labels": True, "truncation": True, "max_length": 6}
    inputs = processor.apply_chat_template(messages, **options)
    assert inputs["labels"].shape == inputs["input_ids"].shape == (1, 6)
    assert inputs["labels"][0, -1] == inputs["input_ids"][0, -1]
    with pytest.raises(InputError, match="max_length=3 cuts off <image>"):
        processor(text="when does it <image>", images=PIXELS, truncation=True, max_length=3)


def test_tensors_are_of_pytorch_or_numpy(processor):
    arrays = processor(text=["<image> a"], images=PIXELS, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert arrays["pixel_values"].shape == (1, 3, 32, 32)
    for kind in ("pt", None):
        assert isinstance(processor(text="a", return_tensors=kind)["input_ids"], torch.Tensor)
    assert "attention_mask" not in processor(text="a", return_attention_mask=False)
    ids = processor.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, return_dict=False)
    assert isinstance(ids, torch.Tensor)


def test_masks_of_what_the_assistant_says(processor):
    messages = [{"role": "user", "content": "when ?"}, {"role": "assistant", "content": "a b"}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_assistant_tokens_mask=True)
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][inputs["assistant_masks"].bool()])
    assert words == ["a", "b", "</s>"]
    assert "labels" not in inputs


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"padding": "longer"}, "padding='longer' cannot be honoured; allowed are"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"truncation": True}, "truncation needs max_length"),
        ({"truncation": "only_second", "max_length": 3}, "truncation='only_second' cannot be honoured"),
        ({"max_length": 3}, "needs truncation=True or padding='max_length'"),
        ({"truncation": True, "max_length": 0}, "max_length must be a whole number"),
        ({"truncation": True, "max_length": "3"}, "max_length must be a whole number"),
        ({"pad_to_multiple_of": 1.5}, "pad_to_multiple_of must be a whole number"),
        ({"padding_side": "middle"}, "padding_side='middle' cannot be honoured; allowed are 'left', 'right'"),
        ({"return_tensors": "tf"}, "return_tensors='tf' cannot be honoured; allowed are 'pt', 'np'"),
        ({"add_special_tokens": True}, "add_special_tokens=True cannot be honoured"),
        ({"return_offsets_mapping": True}, "return_offsets_mapping=True cannot be honoured"),
        ({"text_kwargs": 3}, "text_kwargs must be a mapping"),
        ({"text_kwargs": {"paddding": True}}, "no 'paddding'; did you mean 'padding'"),
        ({"do_rescale": False}, "the processor takes no 'do_rescale'"),
        ({"num_frame": 8}, "no 'num_frame'; did you mean 'num_frames'"),
        ({"audio": [0.0]}, "audio says whether the sound of a video's file is heard: True or False, not 0.0"),
    ],
)
def test_nothing_is_swallowed(processor, keywords, message):
    with pytest.raises(InputError, match=message):
        processor(text="a", **keywords)
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True, **keywords)


@pytest.mark.parametrize("option", [{"num_frames": 8}, {"fps": 2}, {"padding": True}, {"return_tensors": "pt"}])
def test_options_of_inputs_have_no_effect_on_text_and_are_refused(processor, option):
    with pytest.raises(InputError, match=f"{next(iter(option))} has no effect on text: give tokenize=True"):
        processor.apply_chat_template([{"role": "user", "content": "a"}], **option)


def test_keywords_that_ask_for_nothing_are_taken(processor):
    nothing = {"audio": None, "return_mm_token_type_ids": False, "add_special_tokens": False, "text_kwargs": {}}
    assert torch.equal(processor(text="a", **nothing)["input_ids"], processor(text="a")["input_ids"])


@pytest.mark.parametrize("text", [3, [], [3], [["a"]], b"a"])
def test_what_is_no_text_is_refused(processor, text):
    with pytest.raises(InputError, match="text must be a text or a list of texts"):
        processor(text=text)
