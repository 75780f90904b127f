"""The recipe `speak` from end to end, with tiny parts: alignment, adapters, talk; stopped and gone on with."""

import json
from dataclasses import replace

import pytest
import torch
from own_clips import TINY
from own_pictures import pictures_folder

from mmllm.errors import InputError
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import ON_SCREEN, render
from mmllm.synthetic.things.config import ThingsConfig
from mmllm.train.metrics import read_metrics
from mmllm.train.recipes import recipe
from mmllm.train.run import train

__all__ = ["pictures_folder"]


@pytest.fixture(scope="module")
def small(pictures_folder, tmp_path_factory):
    """The recipe with tiny random parts and three clips."""
    config = SyntheticConfig(
        world="things",
        things=ThingsConfig(pictures=str(pictures_folder)),
        train_videos=3,
        val_videos=0,
        min_duration_s=10,
        max_duration_s=12,
        size=32,
    )
    root = tmp_path_factory.mktemp("set") / "things"
    render(root, config, workers=1, progress=False)
    loss = replace(recipe("speak").model.loss, grounding_layer=-2)
    model = replace(TINY, visual_tokenizer="mlp", template="chatml", system_prompt="smollm2", loss=loss)
    steps = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "logging_steps": 1}
    return replace(recipe("speak"), model=model).changed(
        {"data": {"root": str(root), "talk": 0.25}, "word_alignment": steps, "language": {**steps, "lora_rank": 2}}
    )


def test_it_trains_projector_then_adapters_and_goes_on_where_it_was_stopped(small, tmp_path, monkeypatch):
    from mmllm.train import fitting

    whole = train(small, tmp_path / "whole", workers=0)
    words = read_metrics(tmp_path / "whole" / "word_alignment" / "metrics.jsonl")
    assert words[-2]["loss"] < words[0]["loss"]
    assert (tmp_path / "whole" / "word_alignment" / "projector.safetensors").exists()

    saved = fitting.Scheduled._save_checkpoint

    def killed(trainer, *arguments):
        saved(trainer, *arguments)
        raise KeyboardInterrupt

    for _ in range(4):  # each sitting ends behind its first checkpoint
        monkeypatch.setattr(fitting.Scheduled, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small, tmp_path / "stopped", workers=0)
    monkeypatch.undo()
    train(small, tmp_path / "stopped", workers=0)
    states = [VideoQA.from_pretrained(tmp_path / name / "model").model.state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    answer = VideoQA.from_pretrained(whole)
    assert answer.note is None or "things" in answer.note


def test_clips_without_names_cannot_be_aligned(small, tmp_path):
    root = tmp_path / "unnamed"
    root.mkdir()
    source = small.data.root
    for name in ("videos", "train.json", "talk.jsonl"):
        (root / name).symlink_to(f"{source}/{name}")
    with pytest.raises(InputError, match=ON_SCREEN):
        train(small.changed({"data": {"root": str(root)}}), tmp_path / "run", workers=0)


def test_its_parts_are_those_of_the_presets_and_its_settings_are_a_file():
    made = recipe("speak")
    assert made.model.encoder.startswith("timm:name=tf_efficientnet_lite0,image_size=192,mean=0.498039")
    assert made.model.encoder.endswith("classes=frame,output_grid=4")
    assert made.changed(json.loads(json.dumps(made.to_mapping()))) == made
