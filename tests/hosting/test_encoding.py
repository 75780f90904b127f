"""Features of media: found by medium, mapped with all that goes with them, repeated for several questions."""

import pytest
import torch
from reference import run
from tiny_models import CASES, some

from mmllm.errors import InputError
from mmllm.hosting.encoding import facts_of, flat
from mmllm.hosting.model import HostedModel


@pytest.mark.parametrize("case", some())
def test_the_tokens_of_the_media_are_all_features_in_prompt_order(case):
    features = run(case.name).features
    for source in features.outputs:
        own = [number for number, medium in enumerate(features.media) if medium.source == source]
        joint = torch.cat([features.tokens(number) for number in own])
        assert torch.equal(joint, features.flat(source))
        assert all(len(features.tokens(number)) == features.media[number].count for number in own)
    assert [medium.row for medium in features.media] == sorted(medium.row for medium in features.media)


@pytest.mark.parametrize("case", some())
def test_stored_features_hold_nothing_but_tokens_and_facts(case):
    features = run(case.name).features
    for output in features.outputs.values():
        assert set(output.keys()) <= {"pooler_output", "deepstack_features"}
    assert not any("pixel_values" in name or name.endswith("_ids") for name in features.facts)


def test_a_change_of_one_medium_reaches_its_deepstack_features_and_no_other_medium():
    features = run("qwen3_vl_mixed").features
    changed = features.mapped({1: lambda rows: rows.flip(0)})
    assert torch.equal(changed.tokens(1), features.tokens(1).flip(0))
    for old, new in zip(features.deepstack("image"), changed.deepstack("image"), strict=True):
        assert torch.equal(new, old.flip(0))
    for number in (0, 2):
        assert torch.equal(changed.tokens(number), features.tokens(number))
    assert torch.equal(changed.deepstack("video")[2], features.deepstack("video")[2])


def test_outputs_are_copied_for_each_call():
    features = run("qwen3_vl").features
    copies = features.fresh()
    copies["video"].pooler_output = []
    assert len(features.outputs["video"].pooler_output) == 2


def test_features_of_several_rows_are_not_repeated():
    with pytest.raises(InputError, match="several rows cannot be repeated"):
        run("qwen3_vl").features.repeated(2)


def test_media_of_one_row_are_repeated_row_by_row():
    case = CASES["qwen3_vl_mixed"]
    one = HostedModel(case.model).encode(case.inputs([1]))
    two = one.repeated(2)
    assert [(medium.row, medium.modality) for medium in two.media] == [
        (0, "image"),
        (0, "video"),
        (1, "image"),
        (1, "video"),
    ]
    assert torch.equal(two.flat("video"), one.flat("video").repeat(2, 1))
    assert torch.equal(flat(two.outputs["video"].deepstack_features[1]), one.deepstack("video")[1].repeat(2, 1))
    assert two.facts["video_grid_thw"].tolist() == one.facts["video_grid_thw"].tolist() * 2


def test_facts_are_neither_rows_nor_pixels():
    inputs = CASES["qwen2_5_vl_mixed"].inputs()
    assert set(facts_of({**inputs, "labels": inputs["input_ids"], "image_sizes": None})) == {
        "video_grid_thw",
        "image_grid_thw",
        "second_per_grid_ts",
    }


def test_placeholders_that_do_not_fit_the_media_are_refused():
    case = CASES["qwen2_5_vl"]
    inputs = case.inputs()
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, -1] = 191
    with pytest.raises(InputError, match="81 placeholders 191, but its media have 80"):
        HostedModel(case.model).encode(inputs)
    inputs["input_ids"][0, -1] = 190
    with pytest.raises(InputError, match="1 placeholders 190, but its media have 0"):
        HostedModel(case.model).encode(inputs)
