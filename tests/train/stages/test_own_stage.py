"""A stage that another file brings: it is registered, and recipes, config files and the runner take it by its name."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm import registry
from mmllm.train.building import build_model
from mmllm.train.data import DataConfig
from mmllm.train.recipes import recipe
from mmllm.train.run import train
from mmllm.train.schedule import TrainingSchedule


@dataclass(frozen=True, kw_only=True)
class ScalingTraining(TrainingSchedule):
    """How much the projector grows."""

    factor: float = 2.0


@pytest.fixture
def scaling():
    """Registers a stage that multiplies the projector's weights, and takes it away again."""

    @registry.register("training", "scaling", config=ScalingTraining)
    class Scaling:
        """Multiplies the projector."""

        folder, weights, goes_first, rows_needed = "scaling", "projector.safetensors", True, 0

        def __init__(self, config):
            self.config = config

        def check(self, model):
            pass

        def part(self, model):
            return model.visual_tokenizer

        def train(self, run, folder):
            folder.mkdir(exist_ok=True)
            with torch.no_grad():
                run.model.visual_tokenizer.weight.mul_(self.config.factor)
            return run.model

    yield
    del registry._parts["training"]["scaling"]


@pytest.mark.slow
def test_a_stage_of_another_file_is_run_without_any_other_edit(scaling, own_clips, tiny_parts, tmp_path):
    file = {"frame_encoder": None, "scaling": {"factor": "3"}, "language": {"max_steps": 1, "batch_size": 1}}
    start = replace(recipe("smoke"), data=DataConfig(root=str(own_clips)), model=tiny_parts)
    chosen = start.changed(file).with_stage("language", frozen=("encoder", "visual_tokenizer"))
    assert chosen.names == ("scaling", "language")
    trained = load_file(train(chosen, tmp_path, workers=0) / "model.safetensors")
    before = build_model(tiny_parts, chosen.seed)[0].visual_tokenizer.weight
    torch.testing.assert_close(trained["visual_tokenizer.weight"], 3 * before)
    assert torch.equal(load_file(tmp_path / "scaling" / "projector.safetensors")["weight"], 3 * before)
    assert json.loads((tmp_path / "recipe.json").read_text())["scaling"]["factor"] == 3.0
