"""DiffRate's schedule as a stage: only the rates change, the next stage gets them, a stopped stage is resumed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.train.building import build_model
from mmllm.train.data import DataConfig
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.diffrate import DiffRateStage, DiffRateTraining
from mmllm.train.stages.language import LanguageTraining

SHORT = {"batch_size": 2, "save_steps": 3, "logging_steps": 1, "questions_per_video": 2}
RATES = DiffRateTraining(max_steps=6, learning_rate=0.3, **SHORT)
BLOCKS = 3
"""Of the four, the last one is not run."""
ANSWERS = LanguageTraining(max_steps=2, **SHORT)


@pytest.fixture(scope="module")
def make_recipe(own_clips, tiny_parts):
    """Makes a recipe with a tiny CLIP whose schedule can be learned."""
    parts = replace(
        tiny_parts,
        encoder="clip:image_size=32,patch_size=8,width=32,layers=4,heads=4,mlp_width=64",
        reducers=("diffrate:target=0.7,granularity=1",),
        path="plain",
        num_frames=3,
    )
    data = DataConfig(root=str(own_clips))
    return lambda *stages, **model: Recipe(name="rates", data=data, model=replace(parts, **model), stages=stages)


def costs(run):
    return [line["loss"] for line in read_metrics(run / "diffrate" / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_only_the_schedule_is_learned_and_it_is_followed(make_recipe, own_clips, tmp_path):
    recipe = make_recipe(RATES)
    model = VideoQA.from_pretrained(train(recipe, tmp_path, workers=0)).model
    before, _ = build_model(recipe.model, recipe.seed)
    for name, weight in before.state_dict().items():
        same = torch.equal(weight, model.state_dict()[name])
        assert same != name.endswith("selected_probability") or ".0.selected" in name, name
    first, last = (item.encoder_stage.losses()["diffrate_cost"].item() for item in (before, model))
    assert last < first
    assert model.encoder_stage.schedule(17, BLOCKS).live(17)[-1] < 17
    video = next((own_clips / "videos").glob("*.mp4"))
    assert VideoQA.from_pretrained(tmp_path / "model").ask(video, "When?", max_new_tokens=3).raw is not None


@pytest.mark.slow
@pytest.mark.parametrize("order", ["rates first", "answers first"])
def test_the_next_stage_starts_from_what_was_learned(make_recipe, tmp_path, order):
    """Where the reducers are frozen, the language stage leaves the schedule as it is."""
    answers = replace(ANSWERS, frozen=("encoder", "reducers"))
    stages = (RATES, answers) if order == "rates first" else (answers, RATES)
    folder = train(make_recipe(*stages), tmp_path, workers=0)
    whole = load_file(folder / "model.safetensors")
    rates = {name.removeprefix("reducers.0.rates."): w for name, w in whole.items() if name.startswith("reducers")}
    if order == "rates first":
        handed_on = load_file(tmp_path / "diffrate" / "rates.safetensors")
        assert set(handed_on) == set(rates)
        assert all(torch.equal(weight, rates[name]) for name, weight in handed_on.items())
    else:
        handed_on = load_file(tmp_path / "language" / "model.safetensors")
        others = {name for name in handed_on.keys() & whole.keys() if not name.startswith("reducers")}
        assert {"visual_tokenizer.weight", "language_model.model.layers.0.mlp.up_proj.weight"} <= others
        assert all(torch.equal(handed_on[name], whole[name]) for name in others)
    assert json.loads((tmp_path / "recipe.json").read_text())["stages"] == (
        ["diffrate", "language"] if order == "rates first" else ["language", "diffrate"]
    )


@pytest.mark.slow
def test_a_stopped_stage_goes_on_from_its_checkpoint(make_recipe, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(make_recipe(RATES), whole, workers=0)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "model")
    shutil.rmtree(stopped / "diffrate" / "checkpoints" / "checkpoint-6")
    (stopped / "diffrate" / "rates.safetensors").unlink()
    train(make_recipe(RATES), stopped, workers=0)
    assert len(costs(whole)) == 6
    assert costs(stopped) == costs(whole)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (stopped, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_model_without_a_schedule_to_learn_is_refused(make_recipe, tmp_path):
    for reducers in ((), ("diffrate:keep=5",)):
        with pytest.raises(ConfigError, match="needs a model with the reducer diffrate:target=FRACTION"):
            train(make_recipe(ANSWERS, RATES, reducers=reducers), tmp_path / str(len(reducers)), workers=0)
        assert not (tmp_path / str(len(reducers)) / "language").exists()


def test_the_rates_are_trained_and_their_candidates_are_not(make_recipe):
    model, _ = build_model(make_recipe(RATES).model)
    trained = [
        name for name, weight in DiffRateStage(RATES)._prepared(model).named_parameters() if weight.requires_grad
    ]
    assert len(trained) == 2 * BLOCKS
    assert all(name.endswith("selected_probability") for name in trained)
