"""Keys that are turned are those that would have been rotated so from the start, in every family."""

import pytest
import torch

from mmllm.errors import ConfigError
from mmllm.llm.rotary import Rotary


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma", {}),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                       "original_max_position_embeddings": 32}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)  # fmt: skip
def test_turning_is_rotating_the_raw_key(make_llm, family, fields):
    decoder = make_llm(family, **fields).model
    rotary = Rotary.of(decoder)
    raw = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))

    def rotated(position):
        cos, sin = rotary.embed(raw, position.expand(2, -1))
        return rotary.apply(raw, raw, cos, sin)[1]

    before, after = torch.arange(9) * 3 + 20, torch.arange(9)
    turned = rotary.turned(rotated(before), (after - before)[None, None])
    torch.testing.assert_close(turned, rotated(after), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(turned, rotated(before), atol=1e-2)


def test_decoders_whose_keys_cannot_be_turned(make_llm):
    short = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 4,
             "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}  # fmt: skip
    with pytest.raises(ConfigError, match="frequencies of rotary embedding 'longrope' change"):
        Rotary.of(make_llm("phi3", rope_parameters=short).model)
    decoder = make_llm().model
    decoder.rotary_emb = None
    with pytest.raises(ConfigError, match="LlamaModel has no rotary embedding under the usual names"):
        Rotary.of(decoder)
