"""The border to transformers: flat names and values give the same, and what nobody takes is refused by name."""

import inspect

import numpy as np
import pytest
import torch
from nearness import assert_near
from transformers import Trainer, TrainingArguments

from mmllm.errors import InputError
from mmllm.modalities.border import from_flat, lists_flat_names, media_apart
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip
from mmllm.train.packing import NAMES, Row, RowCollator

GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def clip(frames, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=pixels, times_s=np.arange(frames) * 1.5, duration_s=frames * 1.5)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def conversation(*media, question="when does it spin ?"):
    shown = [{"type": "video" if isinstance(one, VideoClip) else "image", "path": one} for one in media]
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": question}]}
    return [asked, {"role": "assistant", "content": "the circle ."}]


BATCH = [conversation(clip(5, 1), picture(40, 90), clip(3, 2)), conversation(picture(90, 50, 3)), conversation(clip(2))]


@pytest.fixture(scope="module", params=["tokens", "interleaved", "tiles"])
def processor(request):
    count = 0 if request.param == "interleaved" else 10
    tokenizer = word_tokenizer("when does it spin ? answer : the circle . s".split(), numbers=True)
    add_special_words(tokenizer, count)
    return MmllmProcessor(
        tokenizer,
        frames={"size": 64},
        num_frames=5,
        num_time_tokens=count,
        time=None if request.param == "tiles" else request.param,
        pinpoints=[[64, 128], [128, 64]] if request.param == "tiles" else None,
    )


@pytest.fixture
def model(processor, make_model):
    words = processor.time_tokens.strings if processor.time_tokens else ()
    ids = processor.tokenizer.convert_tokens_to_ids(list(words))
    return make_model(
        path="slowfast:image_frames=4" if processor.pinpoints is None else "plain",
        decoder={"vocab_size": len(processor.tokenizer)},
        num_time_tokens=len(ids),
        time_token_ids=ids or None,
        video_token_id=processor.video_token_id,
        image_token_id=processor.image_token_id,
    )


@pytest.fixture
def inputs(processor):
    return processor.apply_chat_template(BATCH, tokenize=True, return_labels=True)


def test_values_and_flat_names_give_the_same_loss_logits_and_answers(model, inputs):
    named, text = media_apart(inputs)
    media = from_flat(named)
    assert set(media) == {"image", "video"}
    assert torch.equal(model(**inputs).loss, model(**text, media=media).loss)
    del inputs["labels"], text["labels"]
    assert torch.equal(model(**inputs).logits, model(**text, media=media).logits)
    answers = model.generate(**inputs, **GREEDY)
    assert torch.equal(answers, model.generate(**text, media=media, **GREEDY))
    assert torch.equal(answers, model.generate(**inputs, sequences=model.visual_sequences(media), **GREEDY))


def test_a_ragged_batch_gives_each_row_what_it_gives_alone(processor, model, inputs):
    del inputs["labels"]
    together = model(**inputs).logits
    for row, one in enumerate(BATCH):
        alone = model(**processor.apply_chat_template(one, tokenize=True)).logits[0]
        assert_near(together[row, : len(alone)], alone)


def test_rows_collate_to_what_the_processor_makes_of_the_batch(processor, inputs):
    rows = []
    for messages in BATCH:
        encoded = processor.encode_conversation(messages)
        items = [item for item in messages[0]["content"] if item["type"] != "text"]
        media = tuple(processor.media_inputs(item["type"], [item["path"]]) for item in items)
        rows.append(Row(name="row", text={"input_ids": encoded.input_ids, "labels": encoded.labels}, media=media))
    batch = RowCollator(pad_token_id=processor.tokenizer.pad_token_id)(rows)
    assert batch.keys() == {*inputs, NAMES}
    assert all(torch.equal(batch[name], value) for name, value in inputs.items())


def test_calling_the_processor_gives_what_messages_give(processor, inputs):
    texts = [processor.apply_chat_template(messages) for messages in BATCH]
    videos, images = [clip(5, 1), clip(3, 2), clip(2)], [picture(40, 90), picture(90, 50, 3)]
    called = processor(text=texts, videos=videos, images=images)
    assert called.keys() == inputs.keys() - {"labels"}
    assert all(torch.equal(inputs[name], value) for name, value in called.items())
    assert processor(text="when ?").keys() == {"input_ids", "attention_mask"}
    assert set(called) <= set(processor.model_input_names)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pixel_value_videos", "pixel_values_videos"),
        ("video_time_s", "video_times_s"),
        ("image_tilings", "image_tiling"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_near_ones(make_model, name, nearest):
    with pytest.raises(InputError, match=f"takes '{name}'; did you mean '{nearest}'"):
        make_model()(torch.tensor([[5, 6]]), **{name: torch.zeros(1, 2)})


def test_data_for_nobody_is_refused_and_switches_go_on(make_model):
    model, ids = make_model(), torch.tensor([[5, 6]])
    for data in (torch.zeros(1, 9), {"a": torch.zeros(1)}, [1.0], np.zeros(3)):
        with pytest.raises(InputError, match="neither the LLM nor a modality takes 'sound'"):
            model(ids, sound=data)
    with pytest.raises(ValueError, match="sound"):
        model.generate(ids, sound=torch.zeros(1, 9), **GREEDY)
    out = model(ids, output_hidden_states=True, use_cache=True)
    assert len(out.hidden_states) == 3
    assert out.past_key_values.get_seq_length() == 2


def test_values_and_flat_names_at_once_are_refused(model, inputs):
    named, text = media_apart(inputs)
    with pytest.raises(InputError, match=r"pixel_values.* beside them: give one of the two"):
        model(**inputs, media=from_flat(named))
    assert model(**text, media=from_flat(named), pixel_values=None).loss.isfinite()


def test_the_trainer_of_transformers_keeps_media_columns(model, processor, tmp_path):
    given = set(inspect.signature(model.forward).parameters)
    assert {*processor.model_input_names, "video_features", "video_scores", "labels", "media"} <= given
    row = processor.apply_chat_template(BATCH[2], tokenize=True, return_labels=True)
    settings = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, per_device_train_batch_size=1)
    trainer = Trainer(model, settings, train_dataset=[{**row, "name": "x"}], data_collator=lambda rows: rows[0])
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch.keys() == row.keys()
    assert trainer.compute_loss(model, batch).isfinite()


def test_only_signatures_that_end_in_keywords_are_extended():
    @lists_flat_names
    def forward(ids, *, mask=None, **others):
        return others

    assert [*inspect.signature(forward).parameters][:2] == ["ids", "mask"]
    assert "pixel_values" in inspect.signature(forward).parameters
    assert forward(1, pixel_values=2) == {"pixel_values": 2}
