"""Tokens that are always kept are what the families say: newlines and CLS tokens."""

import pytest
import torch
from tiny_models import CASES

from mmllm.errors import InputError
from mmllm.hosting.model import HostedModel

NEWLINES = [
    *("llava_onevision", "llava_onevision_images", "llava_onevision_several", "llava_onevision_mixed"),
    *("llava_next", "llava_next_video_mixed"),
]


@pytest.mark.parametrize("name", NEWLINES)
@torch.no_grad()
def test_newlines_are_always_kept_and_nothing_else(name):
    case = CASES[name]
    newline = case.model.model.image_newline
    features = HostedModel(case.model).encode(case.inputs())
    for number, medium in enumerate(features.media):
        assert torch.equal((features.tokens(number) == newline).all(-1), medium.fixed)
    assert any(medium.fixed.any() for medium in features.media)


@pytest.mark.parametrize("name", ["video_llava", "video_llava_mixed"])
@torch.no_grad()
def test_frames_of_video_llava_begin_with_cls(name):
    model, inputs = CASES[name].model, CASES[name].inputs()
    features = HostedModel(model).encode(inputs)
    videos = [number for number, medium in enumerate(features.media) if medium.source == "video"]
    fixed = torch.cat([features.tokens(number)[features.media[number].fixed] for number in videos])
    tower = model.model.video_tower(inputs["pixel_values_videos"].flatten(0, 1), output_hidden_states=True)
    cls = model.model.multi_modal_projector(tower.hidden_states[-2])[:, 0]
    assert torch.equal(fixed, cls)
    assert all(not medium.fixed.any() for medium in features.media if medium.source == "image")


@torch.no_grad()
def test_cls_of_llava_stays_where_it_is_part_of_an_image():
    from mmllm.hosting.families.llava import Llava, LlavaHosting

    case = CASES["llava"]
    config = case.fresh().config
    config.vision_feature_select_strategy = "full"
    ids = torch.tensor([[5, *[190] * 17, 6, *[190] * 17, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(2, 3, 32, 32)}
    media = Llava(LlavaHosting()).media(config, inputs)
    assert [medium.fixed.nonzero().flatten().tolist() for medium in media] == [[0, 17]]
    assert media[0].grid == (4, 4)


@pytest.mark.parametrize("name", NEWLINES)
def test_a_newline_cannot_be_dropped(name):
    case = CASES[name]
    host = HostedModel(case.model)
    features = host.encode(case.inputs())
    keep = host.keep_all(case.inputs())
    medium = next(medium for medium in features.media if medium.fixed.any())
    keep[medium.row, medium.places[medium.fixed][0]] = False
    with pytest.raises(InputError, match="cannot be dropped: it is text, or always kept"):
        host.prepare(case.inputs(), features, keep)
