"""Rows for models that read questions: each carries its own question, and no row has two."""

from dataclasses import replace
from pathlib import Path

import pytest
import question_parts
import torch

from mmllm.commands.evaluate import evaluate
from mmllm.datasets.records import Dialogue, Media, Question, Turn
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.samples import read_samples
from mmllm.inference.answering import VideoQA
from mmllm.modalities.video import VideoInputs
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.train.building import build_model
from mmllm.train.features import FeatureCache
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.model_config import DecoderConfig, ModelConfig
from mmllm.train.packing import PackedQuestions, RowCollator
from mmllm.train.recipes import recipe
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled

SETTINGS = "width=16,heads=2,channels=8+8+8"
DECODER = DecoderConfig(width=32, layers=2, mlp_width=64)


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer("when does it spin what ? . answer : the red circle".split())
    add_special_words(tokenizer, 10)
    fields = {"num_frames": 3, "num_time_tokens": 10, "question": question_parts.READER}
    return MmllmProcessor(tokenizer, frames={"size": 64}, **fields)


def question(number, text):
    answer = "<1> <4.5> The red circle."
    return Question(
        question_id=f"a{number}", vid="a", question=text, answer=answer, duration_s=9.0, video=Path("a.mp4")
    )


def video(path):
    return VideoInputs(
        pixels=torch.zeros(1, 3, 3, 64, 64), times_s=torch.arange(3.0)[None], durations_s=torch.tensor([9.0])
    )


class Pretended(MediaLoader):
    """A video without a file."""

    def load(self, kind, path):
        return video(path)


def test_a_row_of_a_question_carries_its_words_and_nothing_of_the_answer(processor):
    questions = [question(0, "When does it spin?"), question(1, "What?")]
    rows = PackedQuestions(questions, processor, video, rows=12, questions_per_row=1, seed=0)
    asked = {tuple(rows[number].media[0].question[0].tolist()) for number in range(12)}
    expected = processor.question_reader.ids(["When does it spin?"]), processor.question_reader.ids(["What?"])
    assert asked == {tuple(ids[0].tolist()) for ids in expected}
    batch = RowCollator(pad_token_id=0)([rows[number] for number in range(4)])
    assert batch["video_question"].shape == (4, 5)


def test_two_questions_behind_one_video_are_refused_with_the_setting(processor):
    with pytest.raises(ConfigError, match="set questions_per_video = 1 \\(it is 2\\)"):
        PackedQuestions([question(0, "What?")], processor, video, rows=1, questions_per_row=2, seed=0)
    start = recipe("quickstart")
    with pytest.raises(ConfigError, match=r"set language.questions_per_video = 1 \(it is \d+\) in a --config file"):
        replace(start, model=replace(start.model, path="asked"))
    one = start.with_stage("language", questions_per_video=1)
    assert replace(one, model=replace(one.model, path="asked")).model.path == "asked"


def test_a_dialogue_asks_for_each_medium_what_its_turn_says(processor):
    turns = [
        Turn(role="user", text="What spin?", media=(Media(kind="video", path=Path("a.mp4")),)),
        Turn(role="assistant", text="the red circle."),
        Turn(role="user", text="When?"),
        Turn(role="assistant", text="<1> <2>"),
    ]
    talk = Dialogue(record_id="a", family="", turns=tuple(turns), duration_s=9.0)
    rows = DialogueRows(Shuffled([talk], 0), processor, Pretended(processor), rows=1, max_text_tokens=200)
    assert torch.equal(rows[0].media[0].question, processor.question_reader.ids(["What spin?"]))


def test_a_model_refuses_a_row_with_two_questions():
    model, _ = build_model(ModelConfig(encoder=f"tiny:{SETTINGS}", path="asked", decoder=DECODER, num_frames=4))
    ids = torch.tensor([[1, model.config.video_token_id, 5, 6, 7, 8]])
    inputs = {
        "input_ids": ids,
        "labels": torch.where(ids > 4, ids, -100),
        "segment_ids": torch.tensor([[0, 0, 1, 1, 2, 2]]),
        "pixel_values_videos": torch.zeros(1, 4, 3, 64, 64),
        "video_times_s": torch.arange(4.0)[None],
        "video_durations_s": torch.tensor([4.0]),
        "video_question": torch.tensor([[4, 5]]),
    }
    with pytest.raises(InputError, match="set questions_per_video = 1"):
        model(**inputs)
    model(**{**inputs, "segment_ids": inputs["segment_ids"].clamp(max=1)}).loss.backward()
    assert model.path.words.weight.grad.abs().sum() > 0


def test_features_are_kept_unless_they_depend_on_the_question(tmp_path):
    for encoder, path in ((f"tiny:{SETTINGS}", "asked"), (f"asked-tiny:{SETTINGS}", "plain")):
        model, made = build_model(ModelConfig(encoder=encoder, path=path, decoder=DECODER, num_frames=4))
        if path == "asked":
            assert FeatureCache(tmp_path, model, made).folder.parent == tmp_path
        else:
            with pytest.raises(ConfigError, match="keep_features = False"):
                FeatureCache(Path(tmp_path), model, made)


@pytest.mark.parametrize(("encoder", "path"), [(f"tiny:{SETTINGS}", "asked"), (f"asked-tiny:{SETTINGS}", "plain")])
def test_a_model_that_reads_questions_is_tuned_and_evaluated(encoder, path, own_clips, tmp_path, capsys):
    for part in build_model(ModelConfig(encoder=encoder, path=path, decoder=DECODER, num_frames=4)):
        part.save_pretrained(tmp_path / "base")
    training = FinetuneTraining(max_steps=2, batch_size=2, lora_rank=0)
    settings = FinetuneConfig(model=str(tmp_path / "base"), training=training)
    tuned = finetune(settings, own_clips / "clips.jsonl", tmp_path / "run", workers=0)
    assert (tmp_path / "run" / "features").exists() == (path == "asked")  # kept where they do not depend on a question
    qa = VideoQA.from_pretrained(tuned)
    before, after = (VideoQA.from_pretrained(folder).model for folder in (tmp_path / "base", tuned))
    words = "path.words.weight" if path == "asked" else "visual_tokenizer.weight"
    assert not torch.equal(before.state_dict()[words], after.state_dict()[words])
    evaluate(str(tuned), own_clips / "clips.jsonl", output=tmp_path / "eval", limit=1, max_new_tokens=3, json=True)
    capsys.readouterr()
    sample = read_samples(tmp_path / "eval" / "samples.jsonl")[0]
    video = own_clips / "videos" / f"{sample.vid}.mp4"
    assert sample.prediction_raw == qa.ask(video, sample.question, max_new_tokens=3).raw
