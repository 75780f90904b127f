"""Pre-training of the frame encoder as a stage: it saves only the encoder, and trains only the tiny encoder."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmllm.errors import ConfigError
from mmllm.train.building import build_model
from mmllm.train.runner import run_stages
from mmllm.train.stage import TrainingRun
from mmllm.train.stages.frame_encoder import FrameEncoderStage, FrameEncoderTraining

SHORT = FrameEncoderTraining(max_steps=2, batch_size=4, save_steps=1, logging_steps=1, workers=0)


@pytest.fixture
def run(tiny_parts, tmp_path):
    """A run of a tiny model that needs no clips."""
    model, processor = build_model(tiny_parts)
    return TrainingRun(
        folder=tmp_path, model=model, processor=processor, build=lambda: build_model(tiny_parts)[0], source=None
    )


def test_it_trains_the_encoder_and_nothing_else(run, tiny_parts, tmp_path):
    trained = run_stages([FrameEncoderStage(SHORT)], run)
    handed_on = load_file(tmp_path / "encoder" / "encoder.safetensors")
    assert set(handed_on) == set(trained.encoder.state_dict())
    before = build_model(tiny_parts)[0].state_dict()
    changed = {name for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder"}
    assert all(torch.equal(weight, trained.encoder.state_dict()[name]) for name, weight in handed_on.items())


def test_scenes_are_the_same_for_the_same_seed(run):
    def first(seed):
        run.seed = seed
        return FrameEncoderStage(SHORT)._scenes(run)[0]["pixels"]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_another_encoder_is_refused(tiny_parts):
    clip = "clip:image_size=32,patch_size=8,width=32,layers=3,heads=4,mlp_width=64"
    model, _ = build_model(replace(tiny_parts, encoder=clip))
    with pytest.raises(ConfigError, match="only the tiny encoder is trained on scenes"):
        FrameEncoderStage(SHORT).check(model)
