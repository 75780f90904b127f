"""Rows from dialogues: unusable ones are set aside, and a dialogue gives the same ids from each annotation format."""

import copy
import json
from pathlib import Path

import pytest
import torch

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.errors import InputError, MmllmError
from mmllm.modalities.image import ImageInputs
from mmllm.modalities.video import VideoInputs
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.times.answers import Span
from mmllm.train.packing import NAMES, RowCollator
from mmllm.train.rows import ATTEMPTS, DialogueRows, MediaLoader, Shuffled, text_row

WORDS = "when does it spin blink ? . answer : the red circle what is this a user assistant".split()


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(WORDS)
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 64}, num_frames=3, num_time_tokens=10, chat_template="vicuna")


class Pretended(MediaLoader):
    """Media without files; what is called `broken` cannot be read."""

    def load(self, kind, path):
        if path.stem == "broken":
            raise InputError(f"{path}: no frames")
        if kind == "image":
            return ImageInputs(pixels=torch.ones(1, 3, 64, 64))
        return VideoInputs(
            pixels=torch.zeros(1, 3, 3, 64, 64),
            times_s=torch.arange(3.0).unsqueeze(0),
            durations_s=torch.tensor([9.0]),
        )


SOME = (Span(1.0, 4.0),)


def dialogue(name, answer="It spin.", spans=SOME, question="When does it spin?", kind="video"):
    return Dialogue(
        record_id=name,
        family="",
        turns=(
            Turn(role="user", text=question, media=(Media(kind=kind, path=Path(f"{name}.mp4")),)),
            Turn(role="assistant", text=answer, spans=spans),
        ),
    )


def rows(processor, dialogues, **options):
    fields = {"rows": 12, "max_text_tokens": 50, **options}
    return DialogueRows(Shuffled(dialogues, 3), processor, Pretended(processor), **fields)


def test_each_epoch_has_every_dialogue_and_the_same_seed_gives_the_same_rows(processor):
    dataset = rows(processor, [dialogue(name) for name in "abcd"])
    names = [dataset[number].name for number in range(12)]
    assert [sorted(names[i : i + 4]) for i in (0, 4, 8)] == [list("abcd")] * 3
    assert names == [dataset[number].name for number in range(12)]
    assert names[:4] != names[4:8] or names[4:8] != names[8:]


def test_what_cannot_be_used_is_set_aside_and_replaced(processor, caplog):
    long = dialogue("long", question="When does it spin? " * 20)
    mute = dialogue("mute", answer="", spans=())
    mute = Dialogue(record_id="mute", family="", turns=mute.turns[:1])
    dataset = rows(processor, [dialogue("a"), dialogue("broken"), long, mute])
    assert {dataset[number].name for number in range(12)} == {"a"}
    assert set(dataset.set_aside) == {"broken", "long", "mute"}
    assert dataset.set_aside["broken"] == "broken.mp4: no frames"
    assert "more than 50" in dataset.set_aside["long"]
    assert "nothing to learn" in dataset.set_aside["mute"]
    assert "set aside broken (" in caplog.text


def test_training_stops_where_nothing_can_be_used(processor):
    with pytest.raises(MmllmError, match=f"{ATTEMPTS} dialogues in a row"):
        rows(processor, [dialogue("broken")])[0]
    with pytest.raises(InputError, match="no dialogue"):
        Shuffled([], 0)


def test_seconds_become_time_tokens_of_the_annotated_or_the_decoded_length(processor):
    def words(item, lengths):
        ids = text_row(item, processor, lengths, 50)["labels"]
        return processor.tokenizer.convert_ids_to_tokens(ids[ids != -100])

    assert words(dialogue("a"), [9.0])[:2] == ["<t1>", "<t4>"]
    annotated = Dialogue(**{**vars(dialogue("a")), "duration_s": 4.5})
    assert words(annotated, [9.0])[:2] == ["<t2>", "<t8>"]
    with pytest.raises(InputError, match="one video, or a 'duration'; it has 2 videos"):
        words(dialogue("a"), [9.0, 3.0])
    ids = text_row(dialogue("a", question="What is <4> ?"), processor, [9.0], 50)["input_ids"]
    assert "<t4>" in processor.tokenizer.convert_ids_to_tokens(ids)


def test_llava_and_chat_messages_give_equal_ids_and_labels(processor, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.jpg").touch()
    answers = [("When does it spin?", "It spin.", [[1, 2.5]]), ("And then?", "the red circle", None)]
    for medium, kind in (("a.mp4", "video"), ("b.jpg", "image")):
        turns = answers if kind == "video" else [(question, answer, None) for question, answer, _ in answers]
        conversations, messages = [], []
        for number, (question, answer, spans) in enumerate(turns):
            tag = f"<{kind}>\n" if number == 0 else ""
            extra = {} if spans is None else {"spans": spans}
            conversations += [{"from": "human", "value": tag + question}, {"from": "gpt", "value": answer, **extra}]
            media = [{"type": kind, kind: medium}] if number == 0 else []
            content = [*media, {"type": "text", "text": question}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer, **extra}]
        (tmp_path / "llava.json").write_text(json.dumps([{"id": "1", kind: medium, "conversations": conversations}]))
        (tmp_path / "chat.jsonl").write_text(json.dumps({"id": "1", "messages": messages}) + "\n")
        llava, chat = (read_dialogues(tmp_path / name).items[0] for name in ("llava.json", "chat.jsonl"))
        lengths = [9.0] if kind == "video" else []
        llava_row, chat_row = (text_row(item, processor, lengths, 99) for item in (llava, chat))
        assert torch.equal(llava_row["input_ids"], chat_row["input_ids"])
        assert torch.equal(llava_row["labels"], chat_row["labels"])
        answer_ids = llava_row["labels"][llava_row["labels"] != -100]
        times = ["<t1>", "<t2>"] if kind == "video" else []
        words = [*times, "it", "spin", ".", "</s>", "the", "red", "circle", "</s>"]
        assert processor.tokenizer.convert_ids_to_tokens(answer_ids) == words


def test_the_system_speaks_first_unless_it_has_spoken(processor):
    prompted = copy.copy(processor)
    prompted.system_prompt = "it is a circle ."
    plain, with_prompt = (
        text_row(dialogue("a"), writer, [9.0], 50)["input_ids"].tolist() for writer in (processor, prompted)
    )
    assert with_prompt[1:6] == prompted.tokenizer.convert_tokens_to_ids(["it", "is", "a", "circle", "."])
    assert with_prompt[:1] + with_prompt[6:] == plain
    own = Dialogue(record_id="a", family="", turns=(Turn(role="system", text="what ?"), *dialogue("a").turns))
    ids = text_row(own, prompted, [9.0], 50)["input_ids"]
    assert prompted.tokenizer.convert_ids_to_tokens(ids[1:3]) == ["what", "?"]


def test_videos_and_images_share_a_batch(processor, make_model):
    dialogues = [dialogue("a"), dialogue("i", kind="image", spans=()), dialogue("b")]
    dataset = rows(processor, dialogues)
    encoded = [dataset.row(item) for item in dialogues]
    collate = RowCollator(pad_token_id=processor.tokenizer.pad_token_id)
    batch = collate(encoded)
    assert batch.pop(NAMES) == ["a", "i", "b"]
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["pixel_values_videos"].shape == (2, 3, 3, 64, 64)
    assert "segment_ids" not in batch
    size = len(processor.tokenizer)
    model = make_model(
        decoder={"vocab_size": size},
        time_token_ids=processor.tokenizer.convert_tokens_to_ids(list(processor.time_tokens.strings)),
        video_token_id=processor.video_token_id,
        image_token_id=processor.image_token_id,
    )
    counts = [int((row.text["labels"] != -100).sum()) for row in encoded]
    batches = [{key: value for key, value in collate([row]).items() if key != NAMES} for row in encoded]
    expected = sum(model(**single).loss.item() * n for single, n in zip(batches, counts, strict=True)) / sum(counts)
    assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_event_that_does_not_happen_is_learnt_in_words(processor):
    asked = dialogue("a").turns[0]
    never, words = (
        Dialogue(record_id="a", family="", turns=(asked, Turn(role="assistant", **answer)))
        for answer in ({"text": "It spin.", "absent": True}, {"text": "It does not happen. It spin."})
    )
    # without a length: no time has to be converted
    rows = [text_row(each, processor, [], 100) for each in (never, words)]
    assert rows[0]["labels"].equal(rows[1]["labels"])
    assert rows[0]["input_ids"].equal(rows[1]["input_ids"])
