"""Every reducer inside the whole model: identity at full budget, training, generation, saving."""

import pytest
import torch
from nearness import assert_near

from mmllm.errors import ConfigError, InputError

VIDEO = 200
IDS = torch.tensor([[5, VIDEO, 6, 7, 8, 0], [5, VIDEO, 3, 9, 8, 9]])
MASK = (IDS != 0).long()
CLIP = "clip:image_size=16,patch_size=4,width=16,layers=4,heads=2,mlp_width=32"
DEEP = {"num_hidden_layers": 4}
WHOLE = [
    "random:keep=16",
    "uniform:keep=16",
    "fastervlm:keep=16",
    "hired:ratio=1",
    "diffrate:keep=16",
    "visionzip:ratio=1",
    "vispruner:keep=16",
]
BEHIND = [
    "evs:rate=0",
    "divprune:keep=16",
    "cdpruner:keep=16,relevance=none",
    "vidcom2:ratio=1",
    "flashvid:ratio=1",
    "holitom:ratio=1",
    "fastvid:ratio=1",
]
SMALL = [
    "random:keep=5",
    "uniform:keep=5",
    "fastervlm:keep=5",
    "hired:ratio=0.3",
    "video_budget:total=20",
    "evs:rate=0.6",
    "diffrate:keep=5",
    "divprune:keep=5",
    "cdpruner:keep=5,relevance=none",
    "vidcom2:ratio=0.3",
    "flashvid:ratio=0.25",
    "holitom:ratio=0.3,threshold=0.5",
    "fastvid:ratio=0.3,least_segments=2",
    "visionzip:dominant=4,contextual=2",
    "vispruner:keep=5",
]
ATP = "atp:depths=0.25+0.5+0.75,ratio=0.5"
PYRAMID = "pyramiddrop:layers=1+2,ratios=0.5+0.25"
SPARSE = "sparsevlm:layers=0+2,ratios=0.5+0.25"
DART = ["dart:layer=0,ratio=0.4", "dart:layer=2,ratio=0.4"]
MERGING = "fastv:layer=2,ratio=0.4,merge=true"
PATHS = ["plain", "slowfast:image_frames=4"]


def pixels(videos=2, frames=4):
    return torch.randn(videos, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def build(make_model):
    return lambda *reducers, path="plain", **fields: make_model(
        encoder=CLIP, reducers=list(reducers), path=path, decoder=DEEP, **fields
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reducer", [*WHOLE, *BEHIND])
def test_a_full_budget_is_the_model_without_a_reducer(build, reducer, path):
    ours, whole = build(reducer, path=path), build(path=path)
    given = {"attention_mask": MASK, "pixel_values_videos": pixels()}
    if reducer.startswith("diffrate"):
        left, all_ = ours.encode(pixels()).features, whole.encode(pixels()).features
        assert_near(left, all_)
        assert_near(ours(IDS, **given).logits, whole(IDS, **given).logits)
    elif reducer in BEHIND and path != "plain":  # the projector then comes before the averages, not after them
        assert_near(ours(IDS, **given).logits, whole(IDS, **given).logits)
    else:
        assert torch.equal(ours(IDS, **given).logits, whole(IDS, **given).logits)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reducer", [*SMALL, ATP, PYRAMID, SPARSE, *DART, MERGING])
def test_every_reducer_answers_the_same_with_and_without_a_cache(build, reducer, path):
    model = build(reducer, path=path)
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    given = {"attention_mask": MASK, "pixel_values_videos": pixels()}
    cached = model.generate(IDS, **given, **greedy)
    assert torch.equal(cached, model.generate(IDS, **given, **greedy, use_cache=False))
    alone = model.generate(IDS[:1, :5], pixel_values_videos=pixels()[:1], **greedy)
    assert torch.equal(cached[0, 6:], alone[0, 5:])
    assert model.generate(IDS, **given, num_beams=2, max_new_tokens=6).shape[0] == 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reducer", [*SMALL, ATP, PYRAMID, SPARSE, *DART, MERGING])
def test_every_reducer_is_trained_through(build, reducer, path):
    model = build(reducer, path=path).train()
    labels = IDS.masked_fill(MASK == 0, -100)
    labels[:, :3] = -100
    out = model(IDS, MASK, labels=labels, pixel_values_videos=pixels())
    out.loss.backward()
    assert model.visual_tokenizer.weight.grad.abs().sum() > 0
    if reducer is ATP:
        assert {"token", "atp_depth", "atp_target", "atp_rest"} == set(out.losses)
        assert all(stage.head_r.bias.grad is not None for stage in model.reducers[0].stages)


def test_a_diffrate_schedule_is_learned_with_the_model_and_saved_with_it(build, tmp_path):
    model = build("diffrate:target=0.6,granularity=1")
    model.freeze("encoder", "language_model")
    rates = [weight for weight in model.reducers.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(rates, lr=0.1)
    reducer, labels = model.reducers[0], IDS.masked_fill(MASK == 0, -100)
    costs = []
    for _ in range(60):
        out = model.train()(IDS, MASK, labels=labels, pixel_values_videos=pixels())
        costs.append(out.losses["diffrate_cost"].item())
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    assert costs[-1] < 0.1 < costs[0]
    assert reducer.schedule(17, 3).live(17)[-1] < 17
    given = {"attention_mask": MASK, "pixel_values_videos": pixels()}
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.reducers[0].schedule(17, 3) == reducer.schedule(17, 3)
    assert torch.equal(model(IDS, **given).logits, loaded(IDS, **given).logits)
    assert model.encode(pixels()).shape[2] == reducer.kept_tokens(16, 1) < 16


def test_reducers_work_in_a_row_and_are_saved_with_the_model(build, tmp_path):
    model = build("uniform:keep=8", "random:keep=4", ATP)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    given = {"attention_mask": MASK, "pixel_values_videos": pixels()}
    assert torch.equal(model(IDS, **given).logits, loaded(IDS, **given).logits)
    kept = model.reduce(model.encode(pixels()))
    assert kept.shape[2] == 4
    assert kept.index.max() < 16


def test_atp_learns_from_rows_of_one_question_as_from_the_question_alone(build):
    model = build(ATP).train()
    labels = IDS[1:].masked_fill(torch.arange(6) < 3, -100)
    row = torch.tensor([[0, 0, 1, 1, 1, 1]])
    alone, packed = (
        model(IDS[1:], labels=labels, segment_ids=segments, pixel_values_videos=pixels(1)) for segments in (None, row)
    )
    assert_near(packed.loss, alone.loss)
    assert set(packed.losses) == {"token", "atp_depth", "atp_target", "atp_rest"}


def test_atp_drops_tokens_between_layers_and_nothing_at_thresholds_of_zero(build):
    model, whole = build(ATP), build()
    model.load_state_dict({**model.state_dict(), **whole.state_dict()})
    given = {"attention_mask": MASK, "pixel_values_videos": pixels()}
    for stage in model.reducers[0].stages:
        torch.nn.init.constant_(stage.head_r.bias, -30.0)
    assert_near(model(IDS, **given).logits[MASK.sum(1) > 5], whole(IDS, **given).logits[1:])
    for stage in model.reducers[0].stages:
        torch.nn.init.constant_(stage.head_r.bias, 30.0)
        torch.nn.init.constant_(stage.head_s.bias, 30.0)
    cache = model(IDS, **given, use_cache=True).past_key_values
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0] - 30


def test_what_cannot_work_together_is_refused_with_what_would(build, make_model):
    with pytest.raises(ConfigError, match=r"use .*uniform"):
        make_model(reducers=["diffrate:keep=5"])
    with pytest.raises(ConfigError, match="too shallow"):
        make_model(reducers=[ATP])
    segments = torch.tensor([[0, 0, 1, 1, 2, 2]])
    for inside in (ATP, SPARSE):
        with pytest.raises(InputError, match="questions_per_video = 1"):
            build(inside)(IDS[1:], labels=IDS[1:], segment_ids=segments, pixel_values_videos=pixels(1))
