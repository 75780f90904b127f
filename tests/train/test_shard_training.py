"""Training and evaluation from shards: the rows of the loose files, disjoint shards for processes, exact resuming."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from mmllm.datasets.formats import read_annotations
from mmllm.datasets.shard_writing import planned, write_shards
from mmllm.datasets.shards import with_split
from mmllm.errors import ConfigError, InputError
from mmllm.runtime import processes
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.train.data import DataConfig
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.rows import DialogueRows
from mmllm.train.run import train
from mmllm.train.stages.language import LanguageTraining

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(own_clips, tmp_path_factory):
    """The own clips as shards of one video each, for training and, the same ones, for evaluation."""
    folder = tmp_path_factory.mktemp("shards")
    items = read_annotations(own_clips / "clips.jsonl").items
    write_shards({split: planned(items, split, 1) for split in ("train", "val")}, folder)
    return folder


def settings(base, **fields):
    fields = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "logging_steps": 1, "lora_rank": 4, **fields}
    return FinetuneConfig(model=str(base), training=FinetuneTraining(**fields))


def losses(run):
    return [line["loss"] for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]


def spied(monkeypatch, file):
    """Writes the names of the rows that this process reads into a file."""
    read = DialogueRows.row

    def row(self, dialogue):
        with file.with_name(f"{file.name}.{processes.rank()}").open("a") as lines:
            lines.write(f"{dialogue.record_id} {dialogue.media[0].path.parent.name}\n")
        return read(self, dialogue)

    monkeypatch.setattr(DialogueRows, "row", row)


@pytest.mark.parametrize("keep_features", [True, False])
def test_a_stopped_training_goes_on_with_the_very_next_row(shards, tiny_base, tmp_path, monkeypatch, keep_features):
    config = settings(tiny_base, keep_features=keep_features)
    spied(monkeypatch, tmp_path / "whole")
    finetune(config, shards, tmp_path / "one", workers=0)
    whole = (tmp_path / "whole.0").read_text().splitlines()
    assert len(set(whole[:6])) == 6, "every sample once an epoch"
    spied(monkeypatch, tmp_path / "again")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "language" / "checkpoints" / "checkpoint-4")
    shutil.rmtree(tmp_path / "two" / "model")
    finetune(config, shards, tmp_path / "two", workers=0)
    assert (tmp_path / "again.0").read_text().splitlines() == whole[4:]
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    ours, theirs = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def shared(config, shards, output, file):
    with pytest.MonkeyPatch.context() as monkeypatch:
        spied(monkeypatch, file)
        finetune(config, shards, output, workers=0)


def test_two_processes_read_disjoint_shards(together, shards, tiny_base, tmp_path):
    together(2, shared, settings(tiny_base, max_steps=3, batch_size=1), shards, tmp_path / "run", tmp_path / "rows")
    rows = [(tmp_path / f"rows.{rank}").read_text().splitlines()[:3] for rank in range(2)]
    names = [{row.split()[0] for row in lines} for lines in rows]
    read = [{row.split()[1] for row in lines} for lines in rows]
    assert len(names[0] | names[1]) == 6
    assert not read[0] & read[1]
    with pytest.raises(ConfigError, match="processes: 2 -> 1"):
        finetune(settings(tiny_base, max_steps=3, batch_size=1), shards, tmp_path / "run", workers=0)


def test_other_shards_are_another_run(shards, tiny_base, tmp_path):
    copied = shutil.copytree(shards, tmp_path / "shards")
    finetune(settings(tiny_base, max_steps=1), copied, tmp_path / "run", workers=0)
    (copied / "index.json").unlink()
    finetune(settings(tiny_base, max_steps=1), copied, tmp_path / "run", workers=0)  # the same rows
    (copied / "train-000003.tar").unlink()
    with pytest.raises(ConfigError, match="other data"):
        finetune(settings(tiny_base, max_steps=1), copied, tmp_path / "run", workers=0)


def test_a_bad_shard_is_refused_or_left_out(shards, tiny_base, tmp_path):
    copied = shutil.copytree(shards, tmp_path / "shards")
    (copied / "index.json").unlink()
    shutil.copy(copied / "train-000000.tar", copied / "train-000009.tar")
    with pytest.raises(InputError, match=r"train-000009\.tar.*occurs in train-000000\.tar.*--skip-bad"):
        finetune(settings(tiny_base, max_steps=1), copied, tmp_path / "run", workers=0)
    finetune(settings(tiny_base, max_steps=1), copied, tmp_path / "run", workers=0, skip_bad=True)


def test_a_recipe_trains_from_shards(own_clips, tiny_parts, tmp_path):
    """As from the folder that they are written from: here all questions of a video share a row."""
    from mmllm.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["shard", str(own_clips), "--output", str(tmp_path / "shards"), "--shard-mb", "1"])
    assert ended.value.code == 0
    assert with_split(tmp_path / "shards", "train") == tmp_path / "shards", "one split needs no name"
    recipe = Recipe(
        name="shards",
        data=DataConfig(root=str(tmp_path / "shards"), synthetic=SyntheticConfig()),
        model=tiny_parts,
        stages=(LanguageTraining(batch_size=2, questions_per_video=4, max_steps=2, save_steps=2, logging_steps=1),),
    )
    train(recipe, tmp_path / "run", workers=1)
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert list(record["annotations"]) == [str(tmp_path / "shards" / "train-000000.tar")]
    assert len(losses(tmp_path / "run")) == 2


def test_an_evaluation_of_shards_is_that_of_the_loose_files(own_clips, shards, tiny_base, tmp_path):
    from mmllm.commands.evaluate import evaluate

    for name, data in (("loose", own_clips / "clips.jsonl"), ("shards", shards)):
        assert evaluate(str(tiny_base), data, output=tmp_path / name, max_new_tokens=6, json=True) == 0
    for kind in ("samples", "shuffled"):
        texts = [(tmp_path / name / f"{kind}.jsonl").read_text() for name in ("loose", "shards")]
        assert texts[0] == texts[1]
    loose, stored = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("loose", "shards"))
    assert stored["miou"] == loose["miou"]
    assert stored["baselines_fitted_on"] == "the training questions"
