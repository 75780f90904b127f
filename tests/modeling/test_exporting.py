"""`torch.export` of the whole model: the same logits, or a refusal that says what to leave out."""

import pytest
import torch

from mmllm.errors import ConfigError, InputError
from mmllm.modeling.exporting import place_traced
from mmllm.modeling.placeholders import place
from mmllm.tokens import VisualSequence

VIDEO, IMAGE = 200, 201
IDS = torch.tensor([[5, VIDEO, 6, 7], [5, 3, VIDEO, 8]])
CLIP = "clip:image_size=64,patch_size=16,width=16,layers=2,heads=2,mlp_width=32"


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return {
        "input_ids": IDS,
        "attention_mask": torch.ones_like(IDS),
        "pixel_values_videos": torch.randn(2, 6, 3, 64, 64, generator=generator),
        "video_frame_mask": mask,
        "video_times_s": torch.arange(6.0).expand(2, 6),
        "video_durations_s": torch.tensor([6.0, 4.0]),
    }


@pytest.mark.parametrize(
    ("fields", "tokens"),  # of the four valid frames of the second video
    [
        ({"blend": {"time_anchor": 1.0, "rms": 0.3}}, 4 + 16),
        ({"encoder": CLIP, "path": "plain", "visual_tokenizer": "mqt:queries=4,tokens=4,heads=2"}, 4 * 4),
    ],
    ids=["slowfast", "mqt"],
)
@torch.no_grad()
def test_the_exported_program_gives_the_same_logits_for_other_pixels(make_model, fields, tokens):
    model = make_model(**fields)
    program = torch.export.export(model, (), {**inputs(), "use_cache": False}).module()
    again = {**inputs(seed=2), "use_cache": False}
    wanted, logits = model(**again).logits, program(**again).logits
    torch.testing.assert_close(logits[0], wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1, : tokens + 3], wanted[1, : tokens + 3], rtol=1e-4, atol=1e-4)
    assert (wanted - model(**inputs()).logits).abs().max() > 0.01
    with pytest.raises(RuntimeError, match="equally many placeholders"):
        program(**{**again, "input_ids": IDS.masked_fill(IDS == VIDEO, 9)})


@torch.no_grad()
def test_images_beside_videos_and_text_alone(make_model):
    model = make_model()
    ids = torch.tensor([[5, IMAGE, 6, VIDEO]])
    pixels = inputs()["pixel_values_videos"][:1]
    for given in (
        {"input_ids": ids, "pixel_values": pixels[:, 0], "pixel_values_videos": pixels, "use_cache": False},
        {"input_ids": IDS[:, :1], "attention_mask": torch.ones(2, 1, dtype=torch.long), "use_cache": False},
    ):
        program = torch.export.export(model, (), given).module()
        torch.testing.assert_close(program(**given).logits, model(**given).logits, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_traced_is_refused_by_name(make_model):
    def export(model, **more):
        return torch.export.export(model, (), {**inputs(), "use_cache": False, **more})

    with pytest.raises(ConfigError, match=r"torch\.export: fastervlm .* with_stages\(reducers=\[\]\)"):
        export(make_model(reducers=["fastervlm:keep=4"]))
    with pytest.raises(InputError, match="export without labels"):
        export(make_model(), labels=IDS)
    with pytest.raises(InputError, match="not 3 media in 2 rows"):
        export(
            make_model(),
            pixel_values_videos=torch.randn(3, 6, 3, 64, 64),
            video_frame_mask=None,
            video_times_s=None,
            video_durations_s=None,
        )


def test_traced_placing_is_placing():
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[0, 5, 9, 6, 9, 8], [9, 7, 9, 8, 0, 0], [4, 9, 9, 3, 2, 1]])
    mask = (ids != 0).long()
    valid = torch.rand(6, 5, generator=generator) > 0.3
    sequence = VisualSequence(
        embeddings=torch.randn(6, 5, 4, generator=generator),
        mask=valid,
        frame=torch.zeros(6, 5, dtype=torch.long),
        blocks=(("frames", 5),),
    )
    wanted, traced = place(ids, mask, {9: sequence}), place_traced(ids, mask, {9: sequence})
    width = wanted.input_ids.shape[1]
    assert torch.equal(traced.input_ids[:, :width], wanted.input_ids)
    assert torch.equal(traced.attention_mask[:, :width], wanted.attention_mask)
    assert not traced.attention_mask[:, width:].any()
    for row in range(3):
        count = int((wanted.input_ids[row] == 9).sum())
        assert torch.equal(traced.visual[row, :count], wanted.visual[row, :count])
    text = (ids != 9) & (mask == 1)
    assert torch.equal(traced.ends[text], wanted.ends[text])
