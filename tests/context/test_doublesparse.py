"""Double Sparsity: the original's channels, label logits, keys and outputs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nearness import assert_near
from policy_runs import slots_seen
from safetensors.torch import load_file

from mmllm.context.doublesparse import DoubleSparse, DoubleSparseConfig
from mmllm.context.doublesparse_channels import best_channels, by_key_head, channel_importance, label_logits
from mmllm.context.keeping import best_keys
from mmllm.errors import CheckpointError, ConfigError
from mmllm.llm.calibration import write_calibration
from mmllm.llm.values import AttentionView

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-doublesparse.safetensors")


def test_channels_are_the_originals():
    importance = channel_importance(GOLDEN["calibration_q"], GOLDEN["calibration_k"])[0]
    assert_near(importance, GOLDEN["channel_importance"])
    assert torch.equal(best_channels(importance, 1), GOLDEN["sorted_channel"])


@pytest.mark.parametrize("bits", [16, 4])
def test_keys_and_outputs_are_the_originals(bits):
    query, keys, values = (GOLDEN[name] for name in "qkv")
    logits = label_logits(query, keys, GOLDEN["sorted_channel"][None, :, :4], bits)
    assert_near(logits, GOLDEN[f"label_logits_{bits}"])
    flat = logits.flatten(1, 2)
    kept = best_keys(flat, torch.ones_like(flat, dtype=torch.bool), torch.tensor([6])).view(logits.shape)
    assert torch.equal(kept, GOLDEN[f"kept_{bits}"])
    out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=kept)
    assert_near(out, GOLDEN[f"out_{bits}"])


def test_the_new_key_is_read_only_where_it_ranks_high():
    """As released: so a token reads `heavy` keys and no more."""
    query, keys = GOLDEN["q"][:, :, -1:], GOLDEN["k"]
    place, valid = torch.arange(keys.shape[2]).expand(1, 1, -1), torch.ones(1, 1, keys.shape[2], dtype=torch.bool)
    policy = DoubleSparse(DoubleSparseConfig(heavy=2, factor=2, dense_layers=0))
    policy.channels = GOLDEN["sorted_channel"][None]
    view = AttentionView(
        layer=0, layers=1, phase="token", current=SimpleNamespace(counts=None), query=query, keys=keys, values=keys,
        query_position=place[:, 0, -1:], position=place, valid=valid, scaling=1.0, state={},
    )  # fmt: skip
    seen = slots_seen(policy.select(view), keys.shape[2])
    logits = label_logits(query, keys, GOLDEN["sorted_channel"][None, :, : query.shape[-1] // 2], 16)[:, :, 0]
    assert torch.equal(seen, torch.zeros_like(seen).scatter(-1, logits.topk(2).indices, True))
    assert not seen[..., -1].all()


def test_all_channels_give_the_true_order():
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 4, 1, 8, generator=generator), torch.randn(1, 2, 30, 8, generator=generator)
    channels = best_channels(by_key_head(channel_importance(query, keys[:, :, :1]), 2), 1)
    logits = query @ keys.repeat_interleave(2, 1).mT
    assert torch.equal(label_logits(query, keys, channels).argsort(-1), logits.argsort(-1))


def test_important_channels_find_more_of_the_heaviest_keys_than_others():
    generator = torch.Generator().manual_seed(0)
    size = torch.linspace(0.1, 3.0, 16)
    query, keys = (torch.randn(1, 2, 200, 16, generator=generator) * size for _ in range(2))
    importance = channel_importance(query, keys)
    true = (query @ keys.mT).topk(20).indices

    def recall(channels):
        found = label_logits(query, keys, channels).topk(20).indices
        return (found.unsqueeze(-1) == true.unsqueeze(-2)).any(-1).float().mean()

    random = torch.rand(importance.shape, generator=generator)
    assert recall(best_channels(importance, 4)) > recall(best_channels(random, 4)) + 0.1


def test_padding_changes_no_importance():
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 4, 6, 8, generator=generator), torch.randn(1, 2, 6, 8, generator=generator)
    alone = channel_importance(query[:, :, 2:], keys[:, :, 2:])
    assert_near(channel_importance(query, keys, torch.arange(6).unsqueeze(0) >= 2), alone)


def test_a_file_is_of_this_llm(tmp_path):
    layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    for layer in layers:
        layer.self_attn = torch.nn.Module()
    order = [[[1, 0, 2, 3]] * 2] * 2
    file = tmp_path / "channels.json"
    write_calibration(file, "doublesparse", layers, {"channels": order})
    policy = DoubleSparse(DoubleSparseConfig(channels=str(file), factor=2))
    policy.check_layers(layers)
    assert policy.channels.tolist() == order
    policy.calibration.require_same_layers()
    policy.check_layers(layers)
    with torch.no_grad():
        layers[0].weight += 1  # as when a checkpoint is loaded
    with pytest.raises(CheckpointError, match=r"measured in an LLM whose layers are '\w{16}', and cannot .* '\w{16}'"):
        policy.calibration.require_same_layers()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[", "cannot be read"),
        ('{"policy": "doublesparse"}', "it needs policy, fingerprint, values"),
        (json.dumps({"policy": "razor", "fingerprint": "", "values": {}}), "a calibration of 'razor'"),
    ],
)
def test_files_that_are_no_calibration(tmp_path, content, why):
    file = tmp_path / "channels.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=why):
        DoubleSparse(DoubleSparseConfig(channels=str(file)))


@pytest.mark.parametrize("order", [[[[0, 0]]], [[0, 1]], "text", [[[0, 1]], [[0, 1]]]])
def test_files_with_other_channels(tmp_path, order):
    layer = torch.nn.Linear(2, 2)
    layer.self_attn = torch.nn.Module()
    write_calibration(tmp_path / "c.json", "doublesparse", [layer], {"channels": order})
    with pytest.raises(ConfigError, match="channels"):
        DoubleSparse(DoubleSparseConfig(channels=str(tmp_path / "c.json"))).check_layers([layer])


@pytest.mark.parametrize(("field", "value"), [("factor", 0), ("heavy", 0), ("heavy", 1.5), ("heavy", float("nan"))])
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=f"DoubleSparseConfig.{field} = {value}"):
        DoubleSparseConfig(**{field: value})
