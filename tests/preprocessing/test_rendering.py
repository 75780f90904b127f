"""Text and media keep their order in the rendered text, whatever the template does; templates are chosen by name."""

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.templates import TEMPLATES
from mmllm.processor import MmllmProcessor, add_special_words

# as published image models write: media first, and no word of videos
_IMAGES_ONLY = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for item in message['content'] | selectattr('type', 'equalto', 'text') %}{{ item['text'] }}{% endfor %}"
    "{{ ' ' }}{% endfor %}"
)
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}
ALL = {**TEMPLATES, "images only": _IMAGES_ONLY}


def words(text):
    return {"type": "text", "text": text}


@pytest.fixture(params=sorted(ALL))
def processor(request):
    tokenizer = word_tokenizer(["when", "?"])
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_time_tokens=10, chat_template=ALL[request.param])


def rendered(processor, *content):
    return processor.apply_chat_template([{"role": "user", "content": list(content)}])


def test_text_and_media_in_turns_keep_their_order(processor):
    text = rendered(
        processor, words("first"), IMAGE, words("then"), VIDEO, words("or"), words(" last"), IMAGE, words("?")
    )
    inside = text[text.index("first") : text.index("?") + 1]
    assert inside.split() == ["first", "<image>", "then", "<video>", "or", "last", "<image>", "?"]
    text = rendered(processor, IMAGE, VIDEO, words("what"))
    assert text.index("<image>") < text.index("<video>") < text.index("what")


def test_media_in_front_of_text_are_written_as_the_template_writes_them(processor):
    empty = words("")
    assert rendered(processor, empty, VIDEO, empty, words("what")) == rendered(processor, VIDEO, words("what"))
    for medium, word in ((IMAGE, "<image>"), (VIDEO, "<video>")):
        join = rendered(processor, medium, words("@@")).split(word)[1].split("@@")[0]
        assert join in (" ", "\n")
        assert f"a{join}{word}{join}b" in rendered(processor, words("a"), medium, words("b"))
        assert f"a {word}\tb" in rendered(processor, words("a "), medium, words("\tb"))


def test_typed_placeholders_between_media_stay_words(processor):
    text = rendered(processor, words("the <image> and"), IMAGE, words("<video>"))
    assert (text.count("<image>"), text.count("<video>")) == (1, 0)
    assert "the < image> and" in text


def test_labels_cover_the_answers_of_interleaved_turns(processor):
    messages = [
        {"role": "user", "content": [words("when"), IMAGE, words("?")]},
        {"role": "assistant", "content": "when when"},
        {"role": "user", "content": [words("?"), VIDEO]},
        {"role": "assistant", "content": [words("when")]},
    ]
    encoded = processor.encode_conversation(messages)
    said = processor.tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.labels != -100])
    assert said.count("when") == 3
    assert not {"<image>", "<video>", "?"} & set(said)


def test_media_of_a_batch_are_read_in_their_order(processor):
    dark, light = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    content = [words("a"), {**IMAGE, "image": light}, words("b"), {**IMAGE, "image": dark}]
    batch = [[{"role": "user", "content": content}], [{"role": "user", "content": content[2:]}]]
    inputs = processor.apply_chat_template(batch, tokenize=True)
    assert [bool(image.mean() > 0) for image in inputs["pixel_values"]] == [True, False, False]


def test_the_last_message_can_be_continued(processor):
    messages = [
        {"role": "user", "content": [VIDEO, words("when")]},
        {"role": "assistant", "content": [words("the ci")]},
    ]
    assert processor.apply_chat_template(messages, continue_final_message=True).endswith("the ci")
    for other in ({"add_generation_prompt": True}, {"return_labels": True}):
        with pytest.raises(InputError, match="continue_final_message ends inside the last message"):
            processor.apply_chat_template(messages, continue_final_message=True, **other)


def test_a_plain_text_reaches_templates_that_read_lists_only(processor):
    messages = [{"role": "user", "content": "when ?"}, {"role": "assistant", "content": [words("then")]}]
    text = processor.apply_chat_template(messages)
    assert text.index("when ?") < text.index("then")


def test_templates_are_chosen_by_name(processor):
    messages = [{"role": "user", "content": "when ?"}]
    assert processor.apply_chat_template(messages, chat_template="chatml").startswith("<|im_start|>user")
    assert processor.apply_chat_template(messages, chat_template="{{ 'x' }}") == "x"
    own = processor.chat_template
    processor.chat_template = {"default": own, "short": "{{ 'short' }}"}
    assert processor.apply_chat_template(messages, "short") == "short"
    assert "when ?" in processor.apply_chat_template(messages)
    processor.chat_template = {"short": "{{ 'short' }}", "long": own}
    with pytest.raises(InputError, match="several chat templates: give chat_template, one of short, long"):
        processor.apply_chat_template(messages)
    processor.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        processor.apply_chat_template(messages)
    with pytest.raises(InputError, match="unknown chat template 'vicuni'; did you mean 'vicuna'"):
        processor.apply_chat_template(messages, "vicuni")


def test_variables_go_to_templates_that_read_them(processor):
    messages = [{"role": "user", "content": "when ?"}]
    assert processor.apply_chat_template(messages, "{{ mood }}", mood="calm") == "calm"
    with pytest.raises(InputError, match="the processor takes no 'mood'"):
        processor.apply_chat_template(messages, mood="calm")
    with pytest.raises(InputError, match="the processor takes no 'tools'"):
        processor.apply_chat_template(messages, tools=[{"name": "search"}])
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        processor.apply_chat_template(messages, refusing)
