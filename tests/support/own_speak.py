"""The recipe `speak` with tiny parts and few clips."""

from dataclasses import replace

import pytest
from own_clips import TINY
from own_pictures import things_config

from mmllm.synthetic.rendering import render
from mmllm.train.recipes import recipe


@pytest.fixture(scope="module")
def small(pictures_folder, tmp_path_factory):
    """The recipe with tiny random parts, three clips to train on and two to ask about."""
    config = things_config(pictures_folder, train_videos=3, val_videos=2, min_duration_s=10, max_duration_s=12, size=32)
    root = tmp_path_factory.mktemp("set") / "things"
    render(root, config, workers=1, progress=False)
    loss = replace(recipe("speak").model.loss, grounding_weight=1.0, grounding_layer=-2)
    model = replace(TINY, visual_tokenizer="mlp", template="chatml", system_prompt="smollm2", loss=loss)
    steps = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "logging_steps": 1}
    start = replace(
        recipe("speak"), adapter_only=False, data=replace(recipe("speak").data, own_talk=False, own_questions=0)
    )
    return replace(start, model=model).changed(
        {"data": {"root": str(root), "talk": 0.25}, "word_alignment": steps, "language": {**steps, "lora_rank": 2}}
    )
