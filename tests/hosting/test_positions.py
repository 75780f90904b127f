"""Positions of whole prompts: transformers' numbers and those of the published training code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CASES, some

from mmllm.errors import InputError
from mmllm.hosting.model import HostedModel
from mmllm.hosting.positions import counted, with_text_behind_media

PUBLISHED = load_file(Path(__file__).parents[1] / "data" / "hosting-trained-positions.safetensors")
"""Positions that the training code in QwenLM/Qwen3-VL at 9658872 (qwenvl/data/rope2d.py, Apache-2.0) gives for prompts
of video and image ids 151656 and 151655; two steps of time a second in Qwen2.5."""
IMAGE, VIDEO = 151655, 151656
MODELS = {"25_long": "qwen2_5_vl", "25_mixed": "qwen2_5_vl", "2_long": "qwen2_vl", "3_mixed": "qwen3_vl"}


def published(name):
    """Inputs of a published prompt, and its positions 3 B N."""
    ids = PUBLISHED[f"{name}.ids"].long()
    facts = {"video_grid_thw": "videos", "image_grid_thw": "images", "second_per_grid_ts": "seconds"}
    inputs = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "mm_token_type_ids": ((ids == IMAGE) + 2 * (ids == VIDEO)).int(),
    }
    for field, own in facts.items():
        if f"{name}.{own}" in PUBLISHED:
            value = PUBLISHED[f"{name}.{own}"]
            inputs[field] = value.long() if own != "seconds" else value
    return inputs, PUBLISHED[f"{name}.positions"].long()


@pytest.mark.parametrize("name", MODELS)
def test_trained_positions_are_those_of_the_training_code(name):
    inputs, expected = published(name)
    model = CASES[MODELS[name]].model
    family = HostedModel(model).family
    ours = family.positions(model, inputs, "trained")
    mask = inputs["attention_mask"].bool()
    assert torch.equal(ours[1:, mask], expected[:, mask])
    assert torch.equal(ours[0], counted(inputs["attention_mask"]))
    theirs = family.positions(model, inputs, "transformers")
    media = inputs["mm_token_type_ids"] > 0
    first = mask & (media.cumsum(1) == 0)
    assert torch.equal(theirs[1:, first], expected[:, first])
    assert torch.equal(theirs[1:, mask], expected[:, mask]) == (not family.text_overlaps(model.config, inputs))


@pytest.mark.parametrize("name", MODELS)
def test_text_behind_a_long_video_overlaps_unless_text_stands_between_its_frames(name):
    inputs, _ = published(name)
    model = CASES[MODELS[name]].model
    assert HostedModel(model).family.text_overlaps(model.config, inputs) == (name != "3_mixed")
    short = {**inputs, "video_grid_thw": inputs["video_grid_thw"].clone(), "second_per_grid_ts": None}
    short["video_grid_thw"][:, 0] = 1
    assert not HostedModel(model).family.text_overlaps(model.config, short)


@pytest.mark.parametrize("case", some())
def test_transformers_own_positions_and_nothing_written_into_the_model(case):
    inputs = case.inputs()
    host = HostedModel(case.model)
    base = case.model.base_model
    before = getattr(base, "rope_deltas", None)
    ours = host.family.positions(case.model, inputs, "transformers")
    assert getattr(base, "rope_deltas", None) is before
    rest = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    theirs = case.fresh()._prepare_position_ids_for_generation(inputs["input_ids"], rest)
    assert torch.equal(ours, theirs)


def test_hosted_questions_write_nothing_into_the_model():
    case = CASES["qwen2_5_vl"]
    model = case.fresh()
    host = HostedModel(model, positions="trained")
    features = host.encode(case.inputs())
    host.generate(case.inputs(), features, max_new_tokens=2, do_sample=False)
    assert model.model.rope_deltas is None


def test_text_alone_counts_on_all_rows():
    case = CASES["qwen3_vl"]
    inputs = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    positions = HostedModel(case.model).family.positions(case.model, inputs, "transformers")
    assert positions.tolist() == [[[0, 0, 1]]] * 4


def test_a_prompt_without_types_is_refused():
    case = CASES["qwen2_5_vl"]
    inputs = case.inputs()
    del inputs["mm_token_type_ids"]
    with pytest.raises(InputError, match="mm_token_type_ids are missing"):
        HostedModel(case.model).generate(inputs, HostedModel(case.model).encode(case.inputs()))


def test_runs_follow_each_other():
    rows = torch.tensor([[[0, 1, 2, 7, 3]], [[0, 1, 1, 2, 3]], [[0, 1, 2, 1, 3]]])  # text at 3 behind a time of 7
    types = torch.tensor([[0, 2, 2, 2, 0]])
    after = with_text_behind_media(rows, types, torch.ones_like(types))
    assert after[:, 0].tolist() == [[0, 1, 2, 7, 8], [0, 1, 1, 2, 8], [0, 1, 2, 1, 8]]
