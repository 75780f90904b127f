"""Each part that CONTRIBUTING shows is all that such a part needs."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmllm import registry
from mmllm.inference.costs import stage_costs
from mmllm.train.building import build_model
from mmllm.train.model_config import DecoderConfig, ModelConfig

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
CODE = re.findall(r"```python\n(.+?)```", CONTRIBUTING.read_text(), flags=re.DOTALL)
IDS = torch.tensor([[5, 200, 6, 7, 8]])


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """Imports the shown file that registers a part; gives its kind and name."""
    monkeypatch.syspath_prepend(tmp_path)
    registered = []

    def load(kind):
        for number, code in enumerate(CODE):
            found = re.search(rf'@register\("{kind}", "([\w-]+)"', code)
            if found and found[1] not in [name for _, name in registered]:
                (tmp_path / f"shown_{number}.py").write_text(code)
                __import__(f"shown_{number}")
                registered.append((kind, found[1]))
                return found[1]
        raise AssertionError(f"no {kind} is shown")

    yield load
    for kind, name in registered:
        registry._parts[kind].pop(name)
    for number in range(len(CODE)):
        sys.modules.pop(f"shown_{number}", None)


def logits(model, frames=6):
    pixels = torch.randn(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, model.config.video_token_id, 6, 7, 8]])
    return model(ids, pixel_values_videos=pixels).logits[0, -1]


def test_the_shown_reducer_ranks_and_is_counted(shown, make_model):
    assert shown("reducer") == "contrast"
    model = make_model(reducers=["contrast:ratio=0.25"])
    assert not torch.allclose(logits(model), logits(make_model()))
    assert [row["tokens"] for row in stage_costs("tiny", ["contrast:keep=3"], "linear", "slowfast", 10)] == [
        160, 30, 30, 26,
    ]  # fmt: skip


def test_the_shown_stage_inside_the_llm_drops_tokens(shown, make_model):
    assert [shown("reducer"), shown("reducer")] == ["contrast", "drop-half"]
    model = make_model(reducers=["drop-half:layer=1"], path="plain")
    pixels = torch.randn(1, 2, 3, 64, 64)
    cache = model(IDS, pixel_values_videos=pixels, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [4 + 32, 4 + 16]


def test_the_shown_stage_with_weights_changes_what_attention_gives(shown, make_model, tmp_path):
    assert shown("decoder_stage") == "scaled-attention"
    model = make_model(decoder_stages=["scaled-attention"])
    assert torch.equal(logits(model), logits(make_model()))
    torch.nn.init.constant_(model.decoder_stages[0].scale, 0.5)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.allclose(logits(model), logits(make_model()))


def test_the_shown_projector_and_path_work_together(shown, make_model):
    projector, path = shown("tokenizer"), shown("path")
    model = make_model(visual_tokenizer=f"{projector}:scale=0.5", path=path)
    assert model.visual_tokenizer.scale.item() == 0.5
    assert logits(model).isfinite().all()
    assert stage_costs("tiny", [], projector, path, 7)[-1]["tokens"] == 7


def test_the_shown_encoder_and_time_format_make_a_model(shown):
    config = ModelConfig(
        encoder=shown("encoder"),
        time=f"{shown('time')}:step=3",
        num_time_tokens=0,
        num_frames=6,
        path="plain",
        decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
    )
    model, processor = build_model(replace(config, num_frames=6))
    assert logits(model.eval()).isfinite().all()
    text = processor.frame_text([[float(second) for second in range(6)]])
    assert (text[0] >= 0).any(-1).tolist() == [True, False, False, True, False, False]
