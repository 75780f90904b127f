from pathlib import Path

import pytest
import torch

from mmllm.datasets.records import Question
from mmllm.errors import InputError
from mmllm.modalities.video import VideoInputs
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.train.packing import PackedQuestions, RowCollator, conversation, pack

WORDS = "when does it spin blink ? . answer : the red circle".split()


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(WORDS)
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32}, num_frames=3, num_time_tokens=10)


def question(vid, number, text="When does it spin?"):
    return Question(
        question_id=f"{vid}_{number}",
        vid=vid,
        question=text,
        answer="<1> <4.5> The red circle.",
        duration_s=9.0,
        video=Path(f"{vid}.mp4"),
    )


def video(path):
    number = len(path.stem)
    return VideoInputs(
        features=torch.full((1, number, 4, 2), float(number)),
        times_s=torch.arange(float(number)).unsqueeze(0),
        durations_s=torch.tensor([9.0]),
        scores={"cls_attention": torch.rand(1, number, 4)},
    )


def test_seconds_are_written_as_time_tokens_and_only_the_answer_is_labelled(processor):
    encoded = conversation(question("a", 0).dialogue(), processor, 9.0)
    words = processor.tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert words == "<s> <video> when does it spin ? answer : <t1> <t4> the red circle . </s>".split()
    assert (encoded.labels != -100).sum() == 7


def test_a_packed_row_has_the_shared_beginning_once(processor):
    questions = [question("a", i, text) for i, text in enumerate(["When spin?", "When blink?"])]
    first, second = (conversation(item.dialogue(), processor, 9.0) for item in questions)
    row = pack([first, second], processor.video_token_id)
    assert row["segment_ids"].tolist() == [0, 0] + [1] * 12 + [2] * 12
    assert row["input_ids"].tolist() == first.input_ids.tolist() + second.input_ids[2:].tolist()
    assert row["labels"][:2].tolist() == [-100, -100]
    with pytest.raises(InputError, match="they have none"):
        pack([processor.encode_conversation([{"role": "user", "content": "when?"}])], processor.video_token_id)


def test_rows_are_a_function_of_seed_and_number_and_cover_all_videos_each_epoch(processor):
    questions = [question(vid, i) for vid in "abcde" for i in range(4)]
    loaded = []

    def rows(seed):
        dataset = PackedQuestions(questions, processor, loaded.append, rows=10, questions_per_row=2, seed=seed)
        return [dataset[i].text["input_ids"].tolist() for i in range(10)]

    assert rows(1) == rows(1)
    first_epochs = [path.stem for path in loaded[:10]]
    assert sorted(first_epochs[:5]) == sorted(first_epochs[5:]) == list("abcde")
    loaded.clear()
    rows(2)
    assert [path.stem for path in loaded] != first_epochs


def test_a_batch_pads_text_and_videos_with_masks(processor):
    questions = [question("a", 0), question("aaa", 0), question("aaa", 1)]
    dataset = PackedQuestions(questions, processor, video, rows=2, questions_per_row=2, seed=0)
    batch = RowCollator(pad_token_id=processor.tokenizer.pad_token_id)([dataset[0], dataset[1]])
    assert batch["video_features"].shape == (2, 3, 4, 2)
    assert sorted(batch["video_frame_mask"].sum(1).tolist()) == [1, 3]
    assert batch["video_scores"]["cls_attention"].shape == (2, 3, 4)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [16, 30]
    assert batch["labels"][batch["attention_mask"] == 0].eq(-100).all()
    assert batch["segment_ids"][batch["attention_mask"] == 0].eq(-1).all()


def test_nothing_to_train_on_is_an_error(processor):
    with pytest.raises(InputError, match="no question"):
        PackedQuestions([], processor, video, rows=1, questions_per_row=1, seed=0)
