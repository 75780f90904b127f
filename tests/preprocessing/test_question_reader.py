"""Questions as ids for visual parts: which text, which ids, and that a saved processor needs nothing else."""

import numpy as np
import pytest
import torch
from question_parts import READER
from transformers import AutoProcessor

from mmllm.errors import ConfigError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.question_reader import FOLDER, QuestionReader, QuestionReaderConfig
from mmllm.preprocessing.templates import TEMPLATES
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip

QUESTION = "When does the red circle spin?"
CLIP = VideoClip(frames=np.zeros((3, 32, 32, 3), np.uint8), times_s=np.arange(3) * 1.0, duration_s=3.0)


def processor(question=READER, **fields):
    tokenizer = word_tokenizer("when does the red circle spin ? then answer : be short".split())
    add_special_words(tokenizer, 10)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_frames=3, num_time_tokens=10, question=question, **fields)


def asked(*items, role="user"):
    kinds = {"v": {"type": "video", "video": CLIP}, "i": {"type": "image", "image": CLIP.frames[0]}}
    return {"role": role, "content": [kinds.get(item) or {"type": "text", "text": item} for item in items]}


def test_ids_are_filled_up_cut_off_with_a_warning_and_absent_for_an_empty_question(caplog):
    reader = QuestionReader(READER)
    ids = reader.ids(["When ?", "", "  ", "red red red circle circle circle spin"])
    first = reader.tokenizer.convert_tokens_to_ids(["when", "?"])
    assert ids.tolist()[0] == [*first, -1, -1, -1, -1]
    assert ids.tolist()[1] == ids.tolist()[2] == [-1] * 6
    assert (ids[3] >= 0).all()
    assert "7 tokens is cut off after 6" in caplog.text
    assert reader.ids([""]).tolist() == [[-1]]
    assert int(reader.ids([" ".join(READER.words[:6])]).max()) < READER.vocabulary_size


@pytest.mark.parametrize("wrong", [{}, {"words": ("a",), "most_words": 0}, {"source": "a/b", "words": ("a",)}])
def test_settings_that_say_nothing_or_two_things_are_refused(wrong):
    with pytest.raises(ConfigError):
        QuestionReaderConfig(**wrong)


def test_special_tokens_of_a_tokenizer_stay_when_a_question_is_cut_off(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer(["a", "b", "[cls]", "[sep]"])
    marks = [(word, tokenizer.convert_tokens_to_ids(word)) for word in ("[cls]", "[sep]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[cls] $A [sep]", special_tokens=marks)
    tokenizer.save_pretrained(tmp_path)
    reader = QuestionReader(QuestionReaderConfig(source=str(tmp_path), most_words=4))
    words = reader.tokenizer.convert_ids_to_tokens(reader.ids(["a b a b a b"])[0].tolist())
    assert words == ["[cls]", "a", "b", "[sep]"]
    plain = QuestionReader(QuestionReaderConfig(source=str(tmp_path), most_words=4, special_tokens=False))
    assert plain.ids(["a b"]).tolist() == [tokenizer.convert_tokens_to_ids(["a", "b"])]


def test_the_question_of_a_medium_is_the_text_of_the_turn_that_holds_it():
    made = processor()
    messages = [
        {"role": "system", "content": "be short"},
        asked("v", QUESTION, "i", "then?"),
        asked("when", role="assistant"),
        asked("then?", "v"),
    ]
    inputs = made.apply_chat_template(messages, tokenize=True)
    whole, second = made.question_reader.ids([f"{QUESTION} then?", "then?"])
    assert torch.equal(inputs["video_question"], torch.stack([whole, second]))
    assert torch.equal(inputs["image_question"], whole[None])


def test_words_of_the_assistant_and_the_system_are_no_question():
    made = processor()
    for role in ("assistant", "system"):
        inputs = made.apply_chat_template([asked("v", QUESTION, role=role), asked("then?")], tokenize=True)
        assert (inputs["video_question"] == -1).all()


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("system", ["", "be short"])
def test_a_rendered_text_gives_the_same_question_as_its_messages(template, system):
    made = processor(chat_template=template, system_prompt=system)
    messages = [asked("v", QUESTION), asked("when", role="assistant"), asked("then?", "i", "red ?")]
    text = made.apply_chat_template(messages, add_generation_prompt=True)
    inputs = made(text=text, videos=CLIP, images=CLIP.frames[0])
    expected = made.apply_chat_template(messages, tokenize=True)
    assert torch.equal(inputs["video_question"], expected["video_question"])
    assert torch.equal(inputs["image_question"], expected["image_question"])


def test_a_batch_has_a_question_for_each_video():
    made = processor()
    batch = [[asked("v", QUESTION)], [asked("v", "red ?")]]
    inputs = made.apply_chat_template(batch, tokenize=True, add_generation_prompt=True)
    assert torch.equal(inputs["video_question"], made.question_reader.ids([QUESTION, "red ?"]))


def test_nothing_changes_without_a_part_that_reads_questions(tmp_path):
    made = processor(question=None)
    inputs = made.apply_chat_template([asked("v", "i", QUESTION)], tokenize=True)
    assert not [name for name in inputs if "question" in name]
    assert not [name for name in made.model_input_names if "question" in name]
    assert "question" not in made.to_dict()
    made.save_pretrained(tmp_path)
    assert "question" not in (tmp_path / "processor_config.json").read_text()
    assert "video_question" in processor().model_input_names


@pytest.mark.parametrize("kind", ["words", "source"])
def test_a_saved_processor_reads_questions_alike_without_its_source(kind, tmp_path):
    config = READER
    if kind == "source":
        word_tokenizer(READER.words).save_pretrained(tmp_path / "source")
        config = QuestionReaderConfig(source=str(tmp_path / "source"), most_words=9)
    made = processor(config)
    before = made.question_reader.ids([QUESTION])
    made.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / FOLDER).exists() == (kind == "source")
    if kind == "source":
        (tmp_path / "source").rename(tmp_path / "elsewhere")
    for cls in (MmllmProcessor, AutoProcessor):
        loaded = cls.from_pretrained(tmp_path / "saved")
        assert loaded.question_reader.config == config
        assert torch.equal(loaded.question_reader.ids([QUESTION]), before)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(MmllmProcessor.from_pretrained(tmp_path / "again").question_reader.ids([QUESTION]), before)
