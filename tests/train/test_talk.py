"""Training on rendered clips of things, with talk without a video among the rows."""

import json
from dataclasses import replace

import pytest
import torch
from own_pictures import pictures_folder, things_config

from mmllm.datasets.mixture import MixtureConfig
from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.things.talk import TALK, talk_rows
from mmllm.train.data import DataConfig, read_data
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.packing import Row, RowCollator
from mmllm.train.recipes import recipe
from mmllm.train.run import train
from mmllm.train.talk import WithTalk

__all__ = ["pictures_folder"]


@pytest.fixture(scope="module")
def things(pictures_folder):
    return things_config(pictures_folder, train_videos=3, val_videos=0, min_duration_s=10, max_duration_s=12, size=32)


class Numbers(torch.utils.data.Dataset):
    """Rows that say which they are."""

    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        text = {"input_ids": torch.tensor([number + 1]), "labels": torch.tensor([number + 1])}
        return Row(name=f"{self.name}{number}", text=text)


@pytest.mark.parametrize(("share", "talks"), [(0.25, 25), (0.1, 10), (0.5, 50), (0.99, 99)])
def test_talk_is_spread_evenly_and_no_row_is_lost(share, talks):
    rows = WithTalk(Numbers("video", 100), Numbers("talk", 100), share)
    assert len(rows) == 100
    names = [rows[number].name for number in range(100)]
    videos = [name for name in names if name.startswith("video")]
    talk = [name for name in names if name.startswith("talk")]
    assert len(talk) == talks
    assert talk == [f"talk{number}" for number in range(talks)]
    assert videos == [f"video{number}" for number in range(100 - talks)]
    tenths = [sum(name.startswith("talk") for name in names[start : start + 20]) for start in range(0, 100, 20)]
    assert max(tenths) - min(tenths) <= 1


def test_talk_and_packed_rows_fit_into_one_batch():
    talk = WithTalk(Numbers("video", 4), Numbers("talk", 4), 0.5)[1]
    packed = Row(name="v", text={key: torch.tensor([1, 2, 3]) for key in ("input_ids", "labels", "segment_ids")})
    batch = RowCollator(pad_token_id=0)([talk, packed])
    assert batch["segment_ids"].tolist() == [[0, -1, -1], [1, 2, 3]]


def test_all_words_of_the_questions_and_of_talk_are_known(things, tmp_path):
    data = read_data(DataConfig(synthetic=things, talk=0.2), tmp_path, rows=4, seed=0, workers=1)
    words = set(data.words())
    asked = json.loads((tmp_path / "data" / "train.json").read_text())
    texts = [text for entry in asked.values() for pair in entry["QA"] for text in (pair["q"], pair["a"])]
    for text in [*texts, *(text for pair in TALK for text in pair), "It does not happen."]:
        bare = "".join(letter if letter.isalnum() else " " for letter in text.lower())
        assert set(bare.split()) <= words | _shape_words(), text
    assert data.items[0].group == "seen"


def _shape_words():
    from mmllm.synthetic.questions import vocabulary

    return set(vocabulary())


def test_questions_about_shapes_need_no_further_words(tmp_path):
    shapes = SyntheticConfig(train_videos=2, val_videos=0, min_duration_s=8, max_duration_s=9)
    assert read_data(DataConfig(synthetic=shapes), tmp_path, rows=4, seed=0, workers=1).words() == []


@pytest.mark.slow
def test_a_recipe_trains_on_things_with_talk(things, tmp_path):
    smoke = recipe("smoke").without("frame_encoder").with_stage("language", max_steps=6, batch_size=2, logging_steps=1)
    model = replace(smoke.model, num_frames=8, path="slowfast:image_frames=8")
    settings = replace(smoke, data=DataConfig(synthetic=things, talk=0.5), model=model)
    folder = train(settings, tmp_path / "run", workers=1)
    lines = [line for line in read_metrics(tmp_path / "run" / "language" / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 6
    assert all(line["loss"] > 0 for line in lines)
    qa = VideoQA.from_pretrained(str(folder))
    assert "pictures of things" in qa.note
    known = qa.processor.tokenizer.get_vocab()
    assert {"bread", "kite", "apple"} & set(known)


@pytest.mark.slow
def test_a_batch_of_talk_alone_can_be_trained_on(tiny_base, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in talk_rows()))
    training = FinetuneTraining(max_steps=2, batch_size=2, logging_steps=1)
    finetune(FinetuneConfig(model=str(tiny_base), training=training), file, tmp_path / "run", workers=0)
    lines = [line for line in read_metrics(tmp_path / "run" / "language" / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 2


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ConfigError, match=r"DataConfig\.talk"):
        DataConfig(talk=share)


def test_a_mixture_has_no_talk():
    with pytest.raises(ConfigError, match=r"DataConfig\.talk"):
        DataConfig(talk=0.1, mixture=MixtureConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "talk"),
        ('{"question": "Who?", "answer": "He.", "video": "clip.mp4"}\n', "clip.mp4|without a video"),
    ],
)
def test_a_file_of_talk_that_cannot_be_used_is_refused(things, tmp_path, content, message):
    from mmllm.synthetic.rendering import render

    root = tmp_path / "data"
    render(root, replace(things, train_videos=1), workers=1, progress=False)
    (root / "talk.jsonl").unlink()
    if content is not None:
        (root / "talk.jsonl").write_text(content)
        (root / "clip.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        read_data(DataConfig(root=str(root), talk=0.2), tmp_path, rows=4, seed=0, workers=1)
