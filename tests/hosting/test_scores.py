"""The attention that a hosted tower's tokens receive, against eager maps; it changes nothing and crosses no thread."""

import inspect
import sys
import threading

import pytest
import torch
from nearness import assert_near
from one_each import one_of_each
from tiny_models import CASES
from transformers.vision_utils import get_vision_window_index

from mmllm.errors import ConfigError
from mmllm.hosting.family import family_of
from mmllm.hosting.model import HostedModel
from mmllm.hosting.scores import NOTED, listen, noting, wanted_of

NOTING = one_of_each(
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "internvl", "llava_onevision", "smolvlm", "video_llama_3",
    "gemma3", "llava", "llava_next", "llava_next_video", "video_llava",
)  # fmt: skip
WITH_CLS = one_of_each("internvl", "llava", "llava_next", "llava_next_video", "video_llava")


@torch.no_grad()
def noted(model, inputs, name):
    """Feature method -> score of each token."""
    family = family_of(model.config)
    with noting(wanted_of(family.towers(model), [name])) as calls:
        family.encode(model, inputs)
    return family.scores(model, inputs, calls[name])


@torch.no_grad()
def eager_maps(model, inputs, source, block):
    """The attention maps (F H N N) of a block, as eager attention computes them, call by call."""
    family, maps = family_of(model.config), []
    attention = family.towers(model)[source].attentions[block]
    model.set_attn_implementation("eager")

    def keep(query, key, mask, scaling):
        logits = (query @ key.transpose(-1, -2)).float() * scaling
        logits = logits if mask is None else logits + mask
        maps.append(logits.softmax(-1))

    module = sys.modules[type(attention).__module__]
    own = module.eager_attention_forward

    def spy(called, query, key, value, attention_mask, scaling=None, **kwargs):
        if called is attention:
            keep(query, key, attention_mask, scaling)
        return own(called, query, key, value, attention_mask, scaling=scaling, **kwargs)

    module.eager_attention_forward = spy
    try:
        method = getattr(model.base_model, f"get_{source}_features")
        names = [name for name in inspect.signature(method).parameters if inputs.get(name) is not None]
        method(**{name: inputs[name] for name in names}, return_dict=True)
    finally:
        module.eager_attention_forward = own
    return maps


@pytest.mark.parametrize("case", NOTING)
def test_there_is_a_score_for_each_token(case):
    hosted = HostedModel(case.model)
    inputs = case.inputs()
    features = hosted.encode(inputs)
    scores = noted(case.model, inputs, "mean_attention")
    assert set(scores) == set(features.outputs)
    for source, values in scores.items():
        assert values.shape == (len(features.flat(source)),)
        fixed = torch.cat([medium.fixed for medium in features.of_source(source)])
        assert (values[fixed] == 0).all()
        assert (values[~fixed] > 0).all()
        assert values[~fixed].unique().numel() > 1


@pytest.mark.parametrize("name", ["internvl", "llava", "video_llava", "llava_next_video"])
@pytest.mark.parametrize("kind", ["mean_attention", "cls_attention"])
def test_class_token_towers_against_eager_maps(name, kind):
    case = CASES[name]
    model, inputs = case.fresh(), case.inputs()
    source = "video" if name in ("video_llava", "llava_next_video") else "image"
    tower = family_of(model.config).towers(model)[source]
    (maps,) = eager_maps(model, inputs, source, tower.features_block)
    rows = maps.mean(1)  # F N N
    wanted = (rows[:, 0] if kind == "cls_attention" else rows.mean(1))[:, 1:]
    got = noted(case.model, inputs, kind)[source]
    if name == "internvl":  # 8 x 8 patches, 2 x 2 in a token
        wanted = wanted.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten()
    elif name == "llava_next_video":  # 6 x 6, 2 x 2 pooled
        wanted = wanted.unflatten(1, (3, 2, 3, 2)).mean((2, 4)).flatten()
    elif name == "video_llava":
        wanted = torch.nn.functional.pad(wanted, (1, 0)).flatten()
    else:
        wanted = wanted.flatten()
    assert_near(got, wanted)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "video_llama_3", "smolvlm", "gemma3", "llava_onevision"])
def test_other_towers_against_eager_maps(name):
    case = CASES[name]
    model, inputs = case.fresh(), case.inputs()
    source = "image" if name in ("smolvlm", "gemma3") else "video"
    tower = family_of(model.config).towers(model)[source]
    maps = eager_maps(model, inputs, source, tower.features_block)
    patches = torch.cat([one.mean((1, 2)).flatten() for one in maps])  # of all frames
    got = noted(case.model, inputs, "mean_attention")[source]
    if name in ("qwen2_vl", "qwen3_vl"):
        wanted = patches.view(-1, 4).mean(1)
    elif name == "video_llama_3":  # 4 consecutive patches are a token; half the size is their mean
        wanted = patches.view(-1, 4).mean(1)[inputs["video_compression_mask"]]
    elif name == "llava_onevision":  # 6 x 6 patches, resized to 3 x 3, a newline behind each video
        wanted = patches.view(-1, 3, 2, 3, 2).mean((2, 4)).view(2, -1)
        wanted = torch.nn.functional.pad(wanted, (0, 1)).flatten()
    else:
        wanted = patches.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten()
    assert_near(got, wanted)


def test_window_order_is_undone():
    """A full block's eager map, put back in order by the tower's own window index."""
    case = CASES["qwen2_5_vl"]
    model, inputs = case.fresh(), case.inputs()
    maps = eager_maps(model, inputs, "video", 2)
    assert [one.shape[-1] for one in maps] == [64] * 5
    patches = torch.cat([one.mean((1, 2)).flatten() for one in maps])
    windows, _ = get_vision_window_index(inputs["video_grid_thw"], spatial_merge_size=2, window_size=16, patch_size=4)
    assert not torch.equal(windows, torch.arange(80))
    wanted = torch.zeros(80)
    wanted[windows] = patches.view(80, 4).mean(1)
    assert_near(noted(case.model, inputs, "mean_attention")["video"], wanted)
    features = HostedModel(case.model).encode(inputs)
    assert len(features.flat("video")) == 80


@pytest.mark.parametrize("case", NOTING)
def test_noting_changes_nothing(case):
    model, inputs = case.fresh(), case.inputs()
    plain = HostedModel(model).encode(inputs)
    noted(model, inputs, "mean_attention")
    family = family_of(model.config)
    towers = family.towers(model)
    with noting(wanted_of(towers, ["mean_attention"])):
        during = HostedModel(model).encode(inputs)
    after = HostedModel(model).encode(inputs)
    for source in plain.outputs:
        assert torch.equal(plain.flat(source), during.flat(source))
        assert torch.equal(plain.flat(source), after.flat(source))
    listening = [a for tower in towers.values() for a in tower.attentions if a.config._attn_implementation == NOTED]
    assert len(set(map(id, listening))) == len({id(tower.attentions[0]) for tower in towers.values()})


@pytest.mark.parametrize("case", WITH_CLS)
def test_an_earlier_block(case):
    first = noted(case.model, case.inputs(), "cls_attention@0")
    last = noted(case.model, case.inputs(), "cls_attention")
    for source in first:
        assert not torch.equal(first[source], last[source])


def test_threads_note_their_own_pictures():
    case = CASES["qwen2_5_vl"]
    wanted = {pictures: noted(case.model, case.inputs(pictures=pictures), "mean_attention") for pictures in (0, 1)}
    assert not torch.equal(wanted[0]["video"], wanted[1]["video"])
    wrong = []

    def run(pictures):
        for _ in range(5):
            got = noted(case.model, case.inputs(pictures=pictures), "mean_attention")
            if not torch.equal(got["video"], wanted[pictures]["video"]):
                wrong.append(pictures)

    threads = [threading.Thread(target=run, args=(number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_half_precision_is_summed_in_float32():
    case = CASES["llava"]
    model = case.fresh().bfloat16()
    inputs = {n: v.bfloat16() if v.is_floating_point() else v for n, v in case.inputs().items()}
    values = noted(model, inputs, "mean_attention")["image"]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, noted(case.model, case.inputs(), "mean_attention")["image"], atol=0.02, rtol=0.2)


def test_what_a_tower_cannot_give():
    qwen = CASES["qwen2_5_vl"].model
    (tower, _) = family_of(qwen.config).towers(qwen).values()
    with pytest.raises(ConfigError, match=r"'cls_attention' cannot be read .* gives mean_attention"):
        tower.block("cls_attention")
    with pytest.raises(ConfigError, match=r"'mean_attention@0': block 0 attends inside windows.*blocks 2 attend"):
        tower.block("mean_attention@0")
    with pytest.raises(ConfigError, match="has blocks 0 to 2"):
        tower.block("mean_attention@3")
    assert tower.offers("mean_attention@2")
    assert not tower.offers("probe_attention")
    for name in ("perception_lm", "fast_vlm"):
        model = CASES[name].model
        assert family_of(model.config).towers(model) == {}


def test_a_tower_with_flash_attention_is_refused():
    model = CASES["llava"].fresh()
    attention = family_of(model.config).towers(model)["image"].attentions[0]
    attention.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="sdpa or eager attention, not 'flash_attention_2'"):
        listen(attention)
