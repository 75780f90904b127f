"""How each family's prompts are read: which media, how many frames, which grids; and what does not fit."""

import pytest
import torch
from tiny_inputs import IMAGE, VIDEO
from tiny_models import CASES, some

from mmllm.errors import InputError
from mmllm.hosting.model import HostedModel

MEDIA = {
    "internvl": "VVV4x4 | VV4x4",
    "internvl_images": "III4x4 I4x4 | II4x4",
    "internvl_mixed": "I4x4 VV4x4 | VVV4x4",
    "smolvlm": "VVV4x4 | VV4x4",
    "smolvlm_images": "III4x4 I4x4 | II4x4",
    "smolvlm_mixed": "I4x4 VV4x4 | VVV4x4",
    "gemma3": "VVV4x4 | VV4x4",
    "gemma3_images": "I4x4 I4x4 | I4x4",
    "llava": "I4x4 I4x4 | I4x4",
    "llava_frames": "VVV4x4 | VV4x4",
    "llava_pixtral": "I4x6 I6x2 | I8x4",
    "fast_vlm": "I4x4 I4x4 | I4x4",
    "fast_vlm_frames": "VVV4x4 | VV4x4",
    "perception_lm": "VVV4x4 | VVV4x4",
    "perception_lm_images": "II4x4 II4x4 | II4x4",
    "perception_lm_mixed": "VV4x4 VV4x4 | I4x4 VV4x4",
    "video_llama_3": "VVV4x4 | VV4x4",
    "video_llama_3_images": "I4x4 I4x4 | I4x4",
    "video_llama_3_mixed": "VVV4x4 | I4x4 VV4x4",
    "llava_onevision": "VVV3x3 | VVV3x3",
    "llava_onevision_images": "I- I- | I-",
    "llava_onevision_several": "I6x6 I6x6 | I-",
    "llava_onevision_mixed": "I- VV3x3 | VV3x3",
    "llava_next": "I- I- | I-",
    "llava_next_video": "VVV3x3 | VVV3x3",
    "llava_next_video_mixed": "I- VV3x3 | VV3x3",
    "video_llava": "VVV4x4 | VVV4x4",
    "video_llava_mixed": "VV4x4 VV4x4 | I4x4 VV4x4",
    "glm4v": "VVV4x4 | VV4x4",
    "glm4v_images": "I2x2 I2x2 | I2x2",
    "glm46v": "VVV4x4 | VV4x4",
    "glm46v_images": "I2x2 I2x2 | I2x2",
}
"""A letter for each frame or tile, then the grid; rows apart."""


def described(media):
    rows = {}
    for medium in media:
        grid = "x".join(map(str, medium.grid)) if medium.grid else "-"
        rows.setdefault(medium.row, []).append(medium.modality[0].upper() * medium.frames + grid)
    return " | ".join(" ".join(rows[row]) for row in sorted(rows))


@pytest.mark.parametrize("case", [case for case in some() if case.id in MEDIA])
def test_media_of_a_prompt(case):
    assert described(HostedModel(case.model).encode(case.inputs()).media) == MEDIA[case.name]


@pytest.mark.parametrize("case", [case for case in some() if case.id in MEDIA])
def test_a_placeholder_too_many_is_refused(case):
    inputs = case.inputs()
    ids = inputs["input_ids"]
    first = int((ids[0] == 5).nonzero()[0])  # text
    ids[0, first] = VIDEO if (ids == VIDEO).any() else IMAGE
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"][0, first] = inputs["mm_token_type_ids"].max()
    with pytest.raises(InputError, match=r"placeholders|types say"):
        HostedModel(case.model).encode(inputs)


@pytest.mark.parametrize("case", [case for case in some() if case.id in MEDIA])
def test_text_alone_has_no_media(case):
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    host = HostedModel(case.model)
    features = host.encode(inputs)
    assert not features.media
    assert not features.outputs
    said = host.generate(inputs, features, max_new_tokens=4, do_sample=False)
    assert torch.equal(said, case.model.generate(**inputs, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", ["internvl", "gemma3", "llava", "fast_vlm", "smolvlm"])
def test_pictures_that_the_prompt_does_not_have_are_refused(name):
    inputs = CASES[name].inputs()
    extra = torch.ones_like(inputs["pixel_values"][:1] if name != "smolvlm" else inputs["pixel_values"][:, :1])
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"], extra], 0 if name != "smolvlm" else 1)
    with pytest.raises(InputError, match="placeholders"):
        HostedModel(CASES[name].model).family.media(CASES[name].model.config, inputs)


def test_a_grey_picture_of_smolvlm_is_refused_by_its_number():
    case = CASES["smolvlm"]
    inputs = case.inputs()
    inputs["pixel_values"][0, 1] = 0
    with pytest.raises(InputError, match="picture 1 of row 0 is all 0 after normalising"):
        HostedModel(case.model).encode(inputs)
