"""Projector and LLM as a stage: what is frozen, what is trained beside adapters, and what is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm.config import LossConfig
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.train.building import build_model
from mmllm.train.data import DataConfig
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.language import LanguageStage, LanguageTraining

SHORT = {"max_steps": 5, "batch_size": 2, "save_steps": 3, "logging_steps": 1, "questions_per_video": 1}
ATP = ("atp:depths=0.3+0.6,ratio=0.5",)


@pytest.fixture
def make_recipe(own_clips, tiny_parts):
    """Makes a recipe with only the language stage."""
    deep = replace(tiny_parts.decoder, layers=4)

    def make(reducers=(), **fields):
        parts = replace(tiny_parts, path="plain", num_frames=3, decoder=deep, reducers=reducers)
        stages = (LanguageTraining(**{**SHORT, **fields}),)
        return Recipe(name="answers", data=DataConfig(root=str(own_clips)), model=parts, stages=stages)

    return make


def moved(recipe, folder):
    """Names of the weights that differ from those before training."""
    before, after = build_model(recipe.model, recipe.seed)[0].state_dict(), load_file(folder / "model.safetensors")
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.mark.slow
def test_thresholds_of_atp_are_learned_beside_adapters(make_recipe, tmp_path):
    recipe = make_recipe(ATP, lora_rank=2, learning_rate=0.01)
    changed = moved(recipe, train(recipe, tmp_path, workers=0))
    assert {"reducers.0.stages.0.head_r.bias", "reducers.0.stages.1.head_s.bias"} <= changed
    assert "visual_tokenizer.weight" in changed
    assert not {name for name in changed if name.startswith("encoder.")}


@pytest.mark.slow
def test_a_frozen_part_stays_as_it_is(make_recipe, tmp_path):
    recipe = make_recipe(ATP, frozen=("encoder", "reducers", "visual_tokenizer"))
    changed = moved(recipe, train(recipe, tmp_path, workers=0))
    assert {name.split(".")[0] for name in changed} == {"language_model"}
    VideoQA.from_pretrained(tmp_path / "model")


def test_a_part_that_does_not_exist_is_refused_before_anything_is_trained(make_recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"LanguageTraining\.frozen: the model has no part 'encodr'; did you mean"):
        train(make_recipe(frozen=("encodr",)), tmp_path, workers=0)
    assert not (tmp_path / "language").exists()
    assert not (tmp_path / "recipe.json").exists()  # so that the mended recipe may be trained in this folder


def test_a_model_built_again_has_the_same_weights_to_load(make_recipe):
    """As where the trained weights were spread over processes, with adapters or without."""
    for rank in (0, 2):
        recipe = make_recipe(ATP, lora_rank=rank)
        stage = LanguageStage(recipe.stage("language"))
        first, second = (stage._prepared(build_model(recipe.model, recipe.seed)[0]) for _ in range(2))
        second.load_state_dict(first.state_dict())
        assert [name for name, weight in first.named_parameters() if weight.requires_grad] == [
            name for name, weight in second.named_parameters() if weight.requires_grad
        ]


NO_GROUNDING = {"loss": LossConfig(time_sigma=1.0)}


@pytest.mark.slow
def test_a_run_in_chunks_learns_what_a_run_in_one_piece_learns(make_recipe, tmp_path):
    losses = []
    for chunks in (1, 3):
        recipe = make_recipe(chunks=chunks, lora_rank=2)
        recipe = replace(recipe, model=replace(recipe.model, **NO_GROUNDING))
        train(recipe, tmp_path / str(chunks), workers=0)
        losses.append(
            [
                line["loss"]
                for line in read_metrics(tmp_path / str(chunks) / "language" / "metrics.jsonl")
                if "loss" in line
            ]
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("reducers", "loss", "reason"),
    [((), LossConfig(grounding_weight=1.0), "grounding_weight"), (ATP, LossConfig(), "stages inside the LLM")],
)
def test_chunks_are_refused_where_the_gradient_would_be_another(make_recipe, tmp_path, reducers, loss, reason):
    recipe = make_recipe(reducers, chunks=2)
    recipe = replace(recipe, model=replace(recipe.model, loss=loss))
    with pytest.raises(ConfigError, match=f"chunks above 1 does not go with .*{reason}"):
        train(recipe, tmp_path, workers=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunks": 0},
        {"chunk_share": 0.0},
        {"chunk_share": 0.5},
        {"chunks": 2, "gradient_checkpointing": True},
        {"chunks": 2, "packed_attention": True},
    ],
)
def test_settings_of_chunks(fields):
    with pytest.raises(ConfigError, match="chunk"):
        LanguageTraining(**fields)
