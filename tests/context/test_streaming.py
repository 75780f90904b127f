"""StreamingLLM: the released order and positions, and a window that stays as large as it is."""

from pathlib import Path

import pytest
import torch
from policy_runs import answer, llm, prompt
from replay import plain_pass
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaModel

from mmllm import registry
from mmllm.context.streaming import frames_of
from mmllm.errors import ConfigError
from mmllm.llm.harness import install

GOLDEN = load_file(Path(__file__).resolve().parents[1] / "data" / "context-streaming.safetensors")


def streaming(**fields):
    return registry.build("context", {"name": "streaming", "protect": ("none",), **fields})


def golden_layer():
    """A decoder whose one layer adds nothing but the attention of the file to its input."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=8, max_position_embeddings=64, rope_theta=10000.0,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    layer = model.layers[0]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(layer.self_attn, name).weight.data = GOLDEN[name].clone()
    layer.input_layernorm = model.norm = torch.nn.Identity()
    layer.mlp.down_proj.weight.data.zero_()
    install(model)
    return model


@torch.no_grad()
def test_outputs_keys_and_lengths_are_the_originals():
    model, hidden = golden_layer(), GOLDEN["hidden"]
    cache = DynamicCache(config=model.config)
    current = plain_pass(torch.ones(1, 8, dtype=torch.bool), [streaming(sinks=2, window=6, positions="inside")])
    outs, lengths = [], []
    for start, stop in [(0, 8), *((at, at + 1) for at in range(8, 26))]:
        more = {"llm_pass": current} if not start else {}
        given = hidden[:, start:stop]
        out = model(inputs_embeds=given, past_key_values=cache, **more).last_hidden_state
        outs.append(out - given)
        lengths.append(cache.layers[0].keys.shape[2])
    torch.testing.assert_close(torch.cat(outs, 1), GOLDEN["out"], atol=1e-5, rtol=0)
    assert lengths[1:] == GOLDEN["cache_lengths"].tolist()
    record = cache.layers[0]
    assert record.turning is not None  # keys are stored unrotated from the first eviction on
    torch.testing.assert_close(record.keys, GOLDEN["kept_keys_raw"], atol=1e-5, rtol=0)
    torch.testing.assert_close(record.values, GOLDEN["kept_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [0, 0.02])
def test_sinks_can_stay_alone(window):
    """As released, a window of 0 keeps nothing between passes but the sinks; of 32 positions 0.02 is none."""
    policy = streaming(sinks=3, window=window)
    _, _, cache = answer(llm(), prompt(policy, rows=1), steps=4)
    assert cache.layers[0].number[0, 0].tolist() == [0, 1, 2, 35]
    assert policy.budget_of(32) == 3


def test_frames_go_whole_and_with_their_time(make_model):
    """A stream in chunks of two frames, each of two positions of time text and three visual ones."""
    model = make_model().language_model
    install(model.model)
    policy = streaming(sinks=2, window=3, unit="frames", positions="inside", protect=("system",))
    head = plain_pass(torch.ones(1, 12, dtype=torch.bool), [policy])
    number = torch.arange(12)[None]
    head.visual, head.time_text = ((number - 2) % 5 >= 2) & (number >= 2), ((number - 2) % 5 < 2) & (number >= 2)
    cache, drawn = DynamicCache(config=model.config), torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 12, 32, generator=drawn)
    sizes = []
    with torch.no_grad():
        model.model(inputs_embeds=embeds, past_key_values=cache, llm_pass=head)
        for _ in range(10):
            kind = torch.tensor([[1, 1, 2, 2, 2] * 2])
            embeds = torch.randn(1, 10, 32, generator=drawn)
            model.model(inputs_embeds=embeds, past_key_values=cache, new_kind=kind)
            sizes.append(cache.layers[0].keys.shape[2])
    record = cache.layers[0]
    assert len(set(sizes[2:])) == 1  # flat
    assert record.kind[0, 0].tolist() == [0, 0, 1, 1] + [1, 1, 2, 2, 2] * 5  # system, sinks, 3 frames and the chunk
    assert record.position[0, 0, -25:].tolist() == list(range(87, 112))
    assert record.angle[0, 0].tolist() == list(range(29))  # positions inside the cache
    assert cache.get_seq_length() == 112


def test_frames_without_times_are_told_by_their_numbers():
    """Frames of four tokens behind each other; the second row has six positions less of the text in front."""
    current = prompt(streaming(sinks=0, window=3, unit="frames"), pad=(0, 6))
    _, _, cache = answer(llm(), current, steps=3)
    first, second = (cache.layers[0].number[row, 0][cache.layers[0].valid[row, 0]].tolist() for row in range(2))
    # the text, the last three of six frames, the question, and what was written
    assert second == [*range(3), *range(15, 27), *range(27, 35)]
    assert first == [*range(9), *range(21, 33), *range(33, 41)]


def test_a_frame_is_all_that_shows_it():
    """One token for each of four frames, then two for each of two of them, as slow-fast prompts have."""
    current = prompt(streaming(sinks=0, window=2, unit="frames"), rows=1, visual=8)
    current.frame[0, 3:11] = torch.tensor([0, 1, 2, 3, 0, 0, 3, 3])
    _, _, cache = answer(llm(), current, steps=1)
    assert cache.layers[0].number[0, 0].tolist() == [*range(3), 5, 6, 9, 10, *range(11, 17)]
    # a second video begins behind text, with numbers from 0 on
    kind = torch.tensor([[[2, 2, 3, 2, 2, 2]]])
    there, newer = frames_of(kind, torch.ones_like(kind, dtype=torch.bool), torch.tensor([[[1, 2, 0, 1, 1, 2]]]))
    assert int(there.sum()) == 4
    assert newer[0, 0, [0, 1, 3, 4, 5]].tolist() == [3, 2, 1, 1, 0]


def test_a_share_of_the_frames_stays_also_behind_a_question():
    current = prompt(streaming(sinks=2, window=0.5, unit="frames"), rows=1)
    _, _, cache = answer(llm(), current, steps=2, question=5)
    assert cache.layers[0].number[0, 0].tolist() == [*range(5), *range(15, 27), *range(27, 34)]


def test_frames_that_cannot_be_told_from_each_other_are_refused():
    current = prompt(streaming(window=2, unit="frames"))
    current.frameless = torch.ones_like(current.visual)  # each token shows several frames
    with pytest.raises(
        ConfigError, match="unit = 'frames': needs prompts that say when each frame is shown, or visual"
    ):
        answer(llm(), current)


def test_bad_input():
    with pytest.raises(ConfigError, match=r"window = 0.0: must be a share"):
        streaming(sinks=0, window=0)
    with pytest.raises(ConfigError, match="sinks = -1: must be 0 or more"):
        streaming(sinks=-1)
    with pytest.raises(ConfigError, match="positions = 'both': must be one of 'absolute', 'inside'"):
        registry.config_of("context", "streaming:positions=both")
