"""LITA's tensor names, and a whole model against one assembled from transformers' own parts."""

import pytest
import torch
from nearness import assert_near
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from mmllm.checkpoints.lita import PROJECTOR, TOWER, from_upstream, lita_config, to_upstream
from mmllm.encoders.clip import ClipConfig
from mmllm.errors import CheckpointError
from mmllm.paths.slowfast import slow_frames

UPSTREAM = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "vocab_size": 90,
    "num_time_tokens": 10,
    "time_token_ids": list(range(80, 90)),
    "num_frames": 6,
    "video_arch": "temporal_spatial_pool",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER = ClipConfig(image_size=16, patch_size=4, width=32, layers=3, heads=4, mlp_width=64)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    clip = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    names = {"num_frames", "video_arch", "mm_vision_select_layer", "mm_use_im_start_end", "num_time_tokens"}
    llama = LlamaConfig(**{key: value for key, value in UPSTREAM.items() if key not in names | {"time_token_ids"}})
    return CLIPVisionModel(clip).eval(), torch.nn.Linear(32, 48), LlamaForCausalLM(llama).eval()


@pytest.fixture(scope="module")
def state(parts):
    tower, projector, llm = parts
    named = {TOWER + name: value for name, value in tower.state_dict().items()}
    named |= {PROJECTOR + name: value for name, value in projector.state_dict().items()}
    return named | llm.state_dict()


def test_the_whole_model_equals_its_parts_put_together_by_hand(parts, state, sight):
    tower, projector, llm = parts
    model = from_upstream(state, lita_config(UPSTREAM, ENCODER)).eval()
    pixels = torch.randn(1, 6, 3, 16, 16)
    ids = torch.tensor([[1, 5, model.config.video_token_id, 6, 7, 85]])
    with torch.no_grad():
        hidden = tower(pixels[0], output_hidden_states=True).hidden_states[-2][:, 1:]
        z = projector(hidden).unflatten(1, (4, 4))  # T H W D
        fast = z.mean(dim=(1, 2))
        slow = z[slow_frames(6, 4)].unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean(dim=(2, 4)).flatten(0, 2)
        words = llm.get_input_embeddings()(ids.clamp(max=89))
        embeddings = torch.cat([words[:, :2], fast[None], slow[None], words[:, 3:]], dim=1)
        wanted = llm(inputs_embeds=embeddings)
        ours = model(ids, pixel_values_videos=pixels)
    assert fast.shape[0] + slow.shape[0] == 6 + 16
    assert_near(ours.logits, wanted.logits)
    assert sight(model, {"input_ids": ids, "pixel_values_videos": pixels}) > 1e-3
    greedy = llm.generate(inputs_embeds=embeddings, max_new_tokens=12, do_sample=False)
    assert torch.equal(
        model.generate(ids, pixel_values_videos=pixels, max_new_tokens=12, do_sample=False)[:, 6:], greedy
    )


def test_there_and_back_changes_no_bit(state):
    back = to_upstream(from_upstream(state, lita_config(UPSTREAM, ENCODER)))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_what_is_only_computed_is_ignored_and_the_tower_may_come_apart(state):
    extra = state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    from_upstream(extra, lita_config(UPSTREAM, ENCODER))
    without = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    tower = {name.removeprefix(TOWER): value for name, value in state.items() if name.startswith(TOWER)}
    model = from_upstream(without, lita_config(UPSTREAM, ENCODER), tower)
    assert set(to_upstream(model)) == set(state)
    with pytest.raises(CheckpointError, match="no vision tower"):
        from_upstream(without, lita_config(UPSTREAM, ENCODER))


def test_what_does_not_fit_is_refused_by_name(state):
    config = lita_config(UPSTREAM, ENCODER)
    with pytest.raises(CheckpointError, match=r"missing: model\.mm_projector\.bias"):
        from_upstream({k: v for k, v in state.items() if k != PROJECTOR + "bias"}, config)
    with pytest.raises(CheckpointError, match=r"unexpected: model\.surprise"):
        from_upstream(state | {"model.surprise": torch.zeros(1)}, config)
    with pytest.raises(CheckpointError, match=r"lm_head.weight \(80, 48\) instead of \(90, 48\)"):
        from_upstream(state | {"lm_head.weight": torch.zeros(80, 48)}, config)
    with pytest.raises(CheckpointError, match="last 10 rows"):
        lita_config({**UPSTREAM, "time_token_ids": list(range(70, 80))}, ENCODER)
    with pytest.raises(CheckpointError, match="start, end or patch tokens"):
        lita_config({**UPSTREAM, "mm_use_im_start_end": True}, ENCODER)
