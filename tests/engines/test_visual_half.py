"""The visual half alone computes what it computes in a whole model, also in the half precision of engines."""

import numpy as np
import pytest
import torch

from mmllm.engines.visual_half import VisualHalf
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

CLIP = "clip:image_size=28,patch_size=7,width=32,layers=2,heads=2,mlp_width=64"
SIGLIP = "siglip:image_size=28,patch_size=7,width=32,layers=2,heads=2,mlp_width=64"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("encoder", ["tiny", CLIP, SIGLIP], ids=["tiny", "clip", "siglip"])
def test_embeddings_are_those_of_the_whole_model(encoder, dtype):
    decoder = DecoderConfig(width=32, layers=1, heads=2, mlp_width=32)
    fields = {"encoder": encoder, "path": "plain", "time": "text", "reducers": ["evs:ratio=0.4"], "num_frames": 5}
    model, processor = build_model(ModelConfig(decoder=decoder, **fields), seed=0)
    model = model.to(dtype).eval()
    torch.set_default_dtype(dtype)  # as vLLM builds models
    try:
        half = VisualHalf(model.config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    weights = {name: value for name, value in model.state_dict().items() if name.partition(".")[0] in VisualHalf.saved}
    half.load_state_dict(weights, strict=True)
    assert half.dtype == dtype
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 40, 3), dtype=np.uint8)
    for kind, medium in (("video", (pixels, {"fps": 1.0})), ("image", pixels[0])):
        inputs = processor.media_inputs(kind, [medium])
        (expected,) = model.visual_sequences({kind: inputs}).values()
        found = half.embeddings(kind, inputs.pixels[0].to(dtype))
        assert torch.equal(found, expected.embeddings[0][expected.mask[0]])
        assert found.dtype == dtype
