"""GLM-4V: images and videos of one placeholder, together and in beam search, where transformers fails."""

import pytest
import torch
from reference import BEAMS, GREEDY, WITH_LOGITS
from tiny_inputs import IMAGE
from tiny_models import CASES, GLM_MIXED

from mmllm.errors import InputError
from mmllm.hosting.model import HostedModel


def from_embeddings(model, inputs):
    """What transformers says when the visual tokens are put among the embeddings by hand."""
    base = model.model
    image = base.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    video = base.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    embeddings = base.get_input_embeddings()(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    embeddings[types == 1] = torch.cat(image)
    embeddings[types == 2] = torch.cat(video)
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw")}
    positions, _ = base.get_rope_index(inputs["input_ids"], types, attention_mask=inputs["attention_mask"], **grids)
    text = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)[None]
    given = {"attention_mask": inputs["attention_mask"], "position_ids": torch.cat([text, positions])}
    return model.generate(inputs_embeds=embeddings, **given, **WITH_LOGITS)


@torch.no_grad()
def test_images_and_videos_in_one_prompt():
    case = GLM_MIXED
    with pytest.raises(Exception, match="do not match"):
        case.model.generate(**case.inputs(), **GREEDY)
    inputs = case.inputs()
    host = HostedModel(case.model)
    features = host.encode(inputs)
    assert [(m.row, m.modality, m.frames) for m in features.media] == [
        (0, "video", 3),
        (1, "image", 1),
        (1, "video", 2),
    ]
    ours = host.generate(inputs, features, **WITH_LOGITS)
    theirs = from_embeddings(case.model, inputs)
    assert torch.equal(ours.sequences[:, inputs["input_ids"].shape[1] :], theirs.sequences)
    assert all(torch.equal(own, their) for own, their in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.parametrize("case", [GLM_MIXED, CASES["glm4v"], CASES["glm4v_images"]], ids=lambda case: case.name)
def test_beams_of_a_batch_are_those_of_its_rows(case):
    host = HostedModel(case.model)
    inputs = case.inputs()
    both = host.generate(inputs, host.encode(inputs), **BEAMS)
    for row in range(2):
        alone = case.inputs([row])
        said = host.generate(alone, host.encode(alone), **BEAMS)
        assert torch.equal(said[0, -6:], both[row, -6:])


def test_a_prompt_without_types_is_refused():
    inputs = CASES["glm4v"].inputs()
    del inputs["mm_token_type_ids"]
    with pytest.raises(InputError, match="mm_token_type_ids are missing"):
        HostedModel(CASES["glm4v"].model).encode(inputs)


def test_types_that_say_other_media_are_refused():
    inputs = CASES["glm4v"].inputs()
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    with pytest.raises(InputError, match="types say 5 images and 0 videos, but there are 0 images and 2 videos"):
        HostedModel(CASES["glm4v"].model).encode(inputs)
