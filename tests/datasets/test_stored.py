"""Dialogues in an Arrow file are those of the annotations, read once."""

import json

import pytest

from mmllm.datasets import stored
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.mixture import MixtureConfig, lita_mixture
from mmllm.datasets.stored import store_dialogues
from mmllm.errors import InputError

ROWS = [
    {"id": "a", "video": "a.mp4", "question": "Wann – é?", "answer": "Jetzt.", "spans": [[1, 2.5], [3, 4]]},
    {"id": "b", "image": "b.jpg", "question": "What?", "answer": "A dog.", "duration": 9, "family": "own"},
    {"id": "c", "video": "gone.mp4", "question": "What?", "answer": "Nothing."},
]


@pytest.fixture
def file(tmp_path):
    for name in ("a.mp4", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    return tmp_path / "rows.json"


def test_they_are_what_the_annotations_say(file, tmp_path):
    dialogues, bad, rows = store_dialogues(file, tmp_path, tmp_path / "tables")
    assert list(dialogues) == read_dialogues(file, tmp_path).items
    assert dialogues[-1].record_id == "b"
    assert (len(bad), rows) == (1, 3)
    assert "gone.mp4" in bad[0]


def test_they_are_read_once_and_again_when_the_file_changes(file, tmp_path, monkeypatch):
    store_dialogues(file, tmp_path, tmp_path / "tables")
    monkeypatch.setattr(stored, "read_dialogues", None)
    assert len(store_dialogues(file, tmp_path, tmp_path / "tables")[0]) == 2
    monkeypatch.undo()
    file.write_text(json.dumps(ROWS[:1]))
    dialogues, bad, _ = store_dialogues(file, tmp_path, tmp_path / "tables")
    assert (len(dialogues), bad) == (1, [])
    assert not list((tmp_path / "tables").glob(".*"))


def test_a_mixture_draws_the_same_from_a_file_as_from_memory(tmp_path):
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": str(i), "image": "d.jpg", "conversations": turns} for i in range(9)]
    (tmp_path / "LLaVA-Instruct-150K").mkdir()
    (tmp_path / "LLaVA-Instruct-150K" / "llava_instruct_150k.json").write_text(json.dumps(rows))
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "train2017" / "d.jpg").touch()
    config = MixtureConfig(draws=30, task_rates={"image_qa": 1})
    memory, mapped = lita_mixture(tmp_path, config), lita_mixture(tmp_path, config, tmp_path / "tables")
    assert list(mapped) == list(memory)
    (tmp_path / "LLaVA-Instruct-150K" / "llava_instruct_150k.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        lita_mixture(tmp_path, config, tmp_path / "tables")
