"""VideoLLaMA3: tokens that its processor left out are no tokens, and the others know their places."""

import torch
from tiny_inputs import PLACEHOLDERS
from tiny_models import CASES

from mmllm.hosting.model import HostedModel

CASE = CASES["video_llama_3"]


@torch.no_grad()
def test_tokens_keep_the_places_that_they_had_in_their_frames():
    inputs = CASE.inputs()
    mask = inputs["video_compression_mask"]
    features = HostedModel(CASE.model).encode(inputs)
    whole = CASE.model.model.get_video_features(
        **{name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")}
    ).pooler_output
    start = 0
    for number, (medium, own) in enumerate(zip(features.media, whole, strict=True)):
        kept = mask[start : start + len(own)].nonzero().flatten()
        assert torch.equal(medium.frame_of * 16 + medium.place_of, kept)
        assert torch.equal(features.tokens(number), own[kept])
        start += len(own)
    assert (mask.sum() < len(mask)).item()


def test_a_video_without_a_mask_has_all_its_tokens():
    inputs = CASE.inputs([0])
    del inputs["video_compression_mask"]
    inputs["input_ids"] = torch.tensor([[5, *[191] * 48, 6]])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    host = HostedModel(CASE.model)
    features = host.encode(inputs)
    assert features.media[0].count == 48
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
    assert torch.equal(host.generate(inputs, features, **options), CASE.model.generate(**inputs, **options))
