"""Reducers on hosted models: a full budget changes nothing, fewer tokens keep their positions, merges are sums."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from one_each import one_of_each
from safetensors import safe_open
from tiny_inputs import PLACEHOLDERS
from tiny_models import CASES

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.hosting.fitting import fitting
from mmllm.hosting.media import Medium
from mmllm.hosting.model import HostedModel
from mmllm.hosting.reduction import ReducerChain, as_tokens, text_behind
from mmllm.interfaces import LlmStage, TokenReducer
from mmllm.pruning.determinantal import determinantal_order, relevance_kernel
from mmllm.pruning.relevance import scaled_relevance

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "modern-evs.safetensors"
STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
ALL = one_of_each()
GRIDS = one_of_each("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "glm4v", "qwen3_5", "llava")


def working(case):
    """The reducers that rank or choose tokens of this model, without a budget."""
    hosted = HostedModel(case.model)
    names = fitting(hosted.family.towers(case.model), case.model.get_decoder())
    return [name for name in names if not merges_or_is_inside(registry.find("reducer", name.partition(":")[0]).cls)]


def merges_or_is_inside(cls):
    """Whether a reducer has more than a choice of tokens before the LLM, which other tests are about."""
    return issubclass(cls, LlmStage) or cls.groups is not TokenReducer.groups


def with_budget(name, ratio):
    return f"{name}{',' if ':' in name else ':'}ratio={ratio}"


def on_grids(case, names):
    """The reducers that work on all media of a case: those that need a grid do not work on tiles with newlines."""
    gridless = any(medium.grid is None for medium in HostedModel(case.model).encode(case.inputs()).media)
    kept = []
    for name in names:
        cls = registry.find("reducer", name.partition(":")[0]).cls
        if not gridless or cls.layout is None or cls.compares_frames:
            kept.append(name)
    return kept


@pytest.mark.parametrize("case", ALL)
@torch.no_grad()
def test_every_reducer_at_full_budget_is_no_reducer(case):
    inputs = case.inputs()
    plain = HostedModel(case.model)
    everything = plain(plain.prepare(inputs)).logits
    names = on_grids(case, working(case))
    assert {"random", "uniform", "evs", "video_budget"} <= set(names)
    for name in names:
        hosted = HostedModel(case.model, reducers=[with_budget(name, 1.0)])
        assert hosted.choose(inputs, hosted.encode(inputs)).all()
        assert torch.equal(hosted(inputs).logits, everything), name
    ids = HostedModel(case.model, reducers=["random:ratio=1"]).generate(inputs, **GREEDY)
    assert torch.equal(ids, case.model.generate(**inputs, **GREEDY)) or not case.upstream_beams


@pytest.mark.parametrize("ratio", [0.5, 0.1])
@pytest.mark.parametrize("case", ALL)
@torch.no_grad()
def test_fewer_tokens_keep_their_positions(case, ratio):
    inputs = case.inputs()
    plain = HostedModel(case.model)
    whole = plain.prepare(inputs).inputs["position_ids"]
    for name in on_grids(case, working(case)):
        if name.startswith("hired") and ratio < 0.5:
            continue  # rounds down, and refuses to leave a frame of 9 tokens without any
        hosted = HostedModel(case.model, reducers=[with_budget(name, ratio)])
        features = hosted.encode(inputs)
        prompt = hosted.prepare(inputs, features)
        expected = inputs["attention_mask"].sum(1)
        for number, medium in enumerate(features.media):
            kept = kept_of(hosted, features, number)
            assert 1 <= kept <= medium.count
            expected[medium.row] -= medium.count - kept
        assert prompt.inputs["attention_mask"].sum(1).tolist() == expected.tolist()
        axes = whole[1:] if whole.ndim == 3 else whole
        gathered = axes.gather(-1, prompt.index.expand(*axes.shape[:-1], -1))
        own = prompt.inputs["position_ids"]
        assert torch.equal((own[1:] if own.ndim == 3 else own)[..., prompt.present], gathered[..., prompt.present])
    # the last of them answers: the cache has what was kept, with positions of the full prompt
    out = hosted.generate(prompt, **GREEDY, **LOGITS)
    assert out.past_key_values.get_seq_length() == int(expected.max()) + STEPS - 1
    chosen = plain.generate(inputs, keep=hosted.choose(inputs, features), **GREEDY, **LOGITS)
    assert torch.equal(out.sequences, chosen.sequences)


def kept_of(hosted, features, number):
    """How many tokens of a medium the one reducer keeps, by its own count, where that is exact."""
    medium, (reducer,) = features.media[number], hosted.reducers
    free = ~medium.fixed
    if reducer.compares_frames and medium.modality == "image":
        return medium.count
    counts = torch.bincount(medium.frame_of[free], minlength=medium.frames)
    if (counts == counts[0]).all() and reducer.registered_name != "hired":
        return reducer.kept_tokens(int(counts[0]), medium.frames) + int(medium.fixed.sum())
    chain = ReducerChain(hosted.reducers)
    return int(chain.of_medium(medium, features.tokens(number), features.scores_of(number)).keep.sum())


@pytest.mark.parametrize("case", ALL)
@torch.no_grad()
def test_dropped_tokens_do_not_matter(case):
    """Other numbers in the place of dropped tokens change no logit, with and without a cache."""
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["random:ratio=0.4"])
    features = hosted.encode(inputs)
    keep = hosted.choose(inputs, features)
    noise = torch.Generator().manual_seed(0)

    def spoilt(medium):
        kept = keep[medium.row, medium.places].unsqueeze(-1)
        return lambda rows: torch.where(kept, rows, torch.randn(rows.shape, generator=noise))

    other = features.mapped({number: spoilt(medium) for number, medium in enumerate(features.media)})
    a = hosted.generate(inputs, features, keep=keep, **GREEDY, **LOGITS)
    b = hosted.generate(inputs, other, keep=keep, **GREEDY, **LOGITS)
    assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))


@pytest.mark.parametrize("case", one_of_each("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"))
@torch.no_grad()
def test_cached_is_uncached(case):
    hosted = HostedModel(case.model, reducers=["evs:ratio=0.5", "random:ratio=0.6"])
    prompt = hosted.prepare(case.inputs())
    cached = hosted.generate(prompt, **GREEDY, **LOGITS)
    length = prompt.inputs["input_ids"].shape[1]
    now = {name: value for name, value in prompt.arguments().items() if name != "mm_encoder_outputs"}
    for step in range(STEPS):
        visual = prompt.arguments()["mm_encoder_outputs"]
        logits = case.model(**now, mm_encoder_outputs=visual, use_cache=False).logits[:, -1]
        assert_near(logits, cached.logits[step])
        token = cached.sequences[:, length + step : length + step + 1]
        now["input_ids"] = torch.cat([now["input_ids"], token], 1)
        now["attention_mask"] = torch.cat([now["attention_mask"], torch.ones_like(token)], 1)
        now["position_ids"] = torch.cat([now["position_ids"], now["position_ids"][..., -1:] + 1], -1)
        if "mm_token_type_ids" in now:
            now["mm_token_type_ids"] = torch.cat([now["mm_token_type_ids"], torch.zeros_like(token).int()], 1)


@pytest.mark.parametrize("case", GRIDS)
@torch.no_grad()
def test_pooled_squares_are_means_in_the_place_of_their_first(case):
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["pool:stride=2"])
    features = hosted.encode(inputs)
    keep, pooled = hosted.reduction(inputs, features)
    for number, medium in enumerate(features.media):
        (h, w), t = medium.grid, medium.frames
        squares = features.tokens(number).view(t, h // 2, 2, w // 2, 2, -1)
        kept = keep[medium.row, medium.places]
        first = torch.zeros(t, h // 2, 2, w // 2, 2, dtype=torch.bool)
        first[:, :, 0, :, 0] = True
        assert torch.equal(kept, first.flatten())
        assert_near(pooled.tokens(number)[kept], squares.mean((2, 4)).flatten(0, 2))
    assert torch.equal(features.tokens(0), hosted.encode(inputs).tokens(0))  # the stored ones are as they were
    out = hosted.generate(inputs, features, **GREEDY)
    again = hosted.generate(inputs, **GREEDY)
    assert torch.equal(out, again)


@torch.no_grad()
def test_deepstack_features_go_through_the_same_sums():
    case = CASES["qwen3_vl_mixed"]
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["pool:stride=2"])
    features = hosted.encode(inputs)
    keep, pooled = hosted.reduction(inputs, features)
    for source in ("image", "video"):
        kept = torch.cat([keep[m.row, m.places] for m in features.of_source(source)])
        for before, after in zip(features.deepstack(source), pooled.deepstack(source), strict=True):
            parts = before.split([m.count for m in features.of_source(source)])
            means = [
                part.view(m.frames, m.grid[0] // 2, 2, m.grid[1] // 2, 2, -1).mean((2, 4)).flatten(0, 2)
                for part, m in zip(parts, features.of_source(source), strict=True)
            ]
            assert_near(after[kept], torch.cat(means))


def a_medium(frames=4, grid=(4, 6), modality="video", extra=0, seed=0):
    count = frames * grid[0] * grid[1] + extra
    fixed = torch.arange(count) >= count - extra
    medium = Medium(modality=modality, frames=frames, count=count, grid=grid, fixed=fixed)
    return medium, torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def chain(*reducers):
    return ReducerChain([registry.build("reducer", reducer) for reducer in reducers])


def test_merges_and_choices_in_a_row():
    """Pooling, a choice, and pooling again: places and sums are those of the plain computation on the grid."""
    medium, rows = a_medium(frames=2, grid=(8, 8), extra=1)
    reduced = chain("pool:stride=2", "uniform:ratio=0.25").of_medium(medium, rows)
    kept = reduced.keep.nonzero().flatten().tolist()
    assert kept == [f * 64 + y * 8 + x for f in range(2) for y in (0, 4) for x in (0, 4)] + [128]
    plain = rows[:128].view(2, 4, 2, 4, 2, 8).mean((2, 4))[:, ::2, ::2]
    assert_near(reduced.rows(rows)[reduced.keep][:-1], plain.flatten(0, 2))
    assert torch.equal(reduced.rows(rows)[128], rows[128])
    twice = chain("pool:stride=2", "pool:stride=2").of_medium(medium, rows)
    assert_near(twice.rows(rows)[twice.keep][:-1], rows[:128].view(2, 2, 4, 2, 4, 8).mean((2, 4)).flatten(0, 2))
    assert int(twice.keep.sum()) == 9


ACROSS = ["holitom:ratio=0.3,threshold=0.2", "fastvid:ratio=0.3,least_segments=1", "flashvid:ratio=0.3"]
"""Reducers that merge tokens of several frames."""


def stand_where_their_reducer_says(medium, rows, scores, reducer):
    """Whether the tokens of a reducer are found at its frames and places among the M tokens, and nothing else is."""
    tokens, slots = as_tokens(medium, rows, scores)
    after = registry.build("reducer", reducer)(tokens)
    reduced = chain(reducer).of_medium(medium, rows, scores)
    made = reduced.rows(rows)
    expected = torch.zeros_like(reduced.keep)
    for frame, slot in after.mask[0].nonzero().tolist():
        number = int((tokens.index[0, frame] == after.index[0, frame, slot]).nonzero()[0])
        at = int(slots[frame, number])
        expected[at] = True
        assert_near(made[at], after.features[0, frame, slot])
    assert torch.equal(reduced.keep, expected | medium.fixed)


@pytest.mark.parametrize("reducer", ACROSS)
@pytest.mark.parametrize("frames", [1, 4, 11])
def test_tokens_merged_across_frames_stand_where_their_reducer_says(reducer, frames):
    medium, rows = a_medium(frames=frames, grid=(4, 6), extra=1)
    attention = torch.rand(medium.count, generator=torch.Generator().manual_seed(2))
    stand_where_their_reducer_says(medium, rows, {"mean_attention": attention}, reducer)


@pytest.mark.parametrize("case", one_of_each("qwen2_vl", "qwen3_vl", "internvl", "llava_onevision", "smolvlm"))
@pytest.mark.parametrize("reducer", ACROSS)
@torch.no_grad()
def test_merging_across_frames_in_each_family(case, reducer):
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=[reducer])
    features = hosted.encode(inputs)
    for number, medium in enumerate(features.media):
        if medium.modality == "video":
            stand_where_their_reducer_says(medium, features.tokens(number), features.scores_of(number), reducer)
    keep, merged = hosted.reduction(inputs, features)
    assert int(keep.sum()) < keep.numel() or all(medium.modality == "image" for medium in features.media)
    assert all(torch.isfinite(merged.tokens(number)).all() for number in range(len(features.media)))
    length = hosted.prepare(inputs, features).inputs["input_ids"].shape[1]
    assert hosted.generate(inputs, features, **GREEDY).shape[1] == length + STEPS


def test_sums_of_sums_of_several_frames():
    """A token that is in several sums, which then go into squares: the map is that of the two steps in a row."""
    medium, rows = a_medium(frames=6, grid=(4, 4))
    scores = {"mean_attention": torch.rand(medium.count, generator=torch.Generator().manual_seed(2))}
    two = ("fastvid:ratio=0.5,least_segments=1,segment_threshold=-1", "pool:stride=2")
    reduced = chain(*two).of_medium(medium, rows, scores)
    tokens, _ = as_tokens(medium, rows, scores)
    for reducer in two:
        tokens = registry.build("reducer", reducer)(tokens)
    sums, expected = reduced.rows(rows)[reduced.keep], tokens.features[tokens.mask]
    assert len(sums) == len(expected)
    order, other = (values[:, 0].argsort() for values in (sums, expected))
    assert_near(sums[order], expected[other])


def test_a_merged_token_stands_in_the_middle():
    medium, rows = a_medium(frames=1, grid=(3, 3))
    reduced = chain("pool:stride=3").of_medium(medium, rows)
    assert reduced.keep.nonzero().flatten().tolist() == [4]
    assert_near(reduced.rows(rows)[4], rows.mean(0))


def test_gradients_reach_all_members():
    medium, rows = a_medium(frames=1, grid=(4, 4))
    rows.requires_grad_()
    reduced = chain("pool:stride=2").of_medium(medium, rows)
    reduced.rows(rows)[reduced.keep].sum().backward()
    assert_near(rows.grad, torch.full_like(rows, 0.25))


@pytest.mark.parametrize("case", "abcdef")
def test_evs_keeps_what_the_original_keeps(case):
    with safe_open(GOLDEN, "pt") as golden:
        settings = json.loads(golden.metadata()["config"])["cases"][case]
        features, wanted = golden.get_tensor(f"in.{case}.tokens"), golden.get_tensor(f"out.{case}.mask")
    frames, height, width = settings["thw"]
    grid = height // settings["merge"], width // settings["merge"]
    medium = Medium(modality="video", frames=frames, count=len(features), grid=grid)
    assert torch.equal(chain({"name": "evs", "rate": settings["q"]}).of_medium(medium, features).keep, wanted)


def test_frames_of_different_lengths():
    """As VideoLLaMA3's processor leaves them: some frames have few tokens, one has none."""
    place = torch.tensor([0, 1, 2, 3, 1, 3, 0, 2, 3])
    frame = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3, 3])
    medium = Medium(modality="video", frames=4, count=9, grid=(2, 2), frame_of=frame, place_of=place)
    rows = torch.arange(9.0).unsqueeze(-1).expand(9, 8)
    tokens, slots = as_tokens(medium, rows, {"mean_attention": torch.arange(9.0)})
    assert tokens.mask.sum(-1).tolist() == [[4, 2, 0, 3]]
    assert tokens.features[tokens.mask][:, 0].tolist() == list(range(9))
    assert tokens.index[tokens.mask].tolist() == place.tolist()
    assert slots[3, :3].tolist() == [6, 7, 8]
    reduced = chain("fastervlm:keep=1,score=mean_attention").of_medium(
        medium, rows, {"mean_attention": torch.arange(9.0)}
    )
    assert reduced.keep.nonzero().flatten().tolist() == [3, 5, 8]
    pooled = chain("pool:stride=2").of_medium(medium, rows)
    assert pooled.rows(rows)[pooled.keep][:, 0].tolist() == [1.5, 4.5, 7.0]


def test_images_stay_whole_where_frames_are_compared():
    medium, rows = a_medium(frames=3, modality="image")
    assert chain("evs:rate=0.9").of_medium(medium, rows).keep.all()
    assert chain("video_budget:ratio=0.1").of_medium(medium, rows).keep.all()
    assert chain("random:ratio=0.25").of_medium(medium, rows).keep.sum() == 18


def test_fixed_tokens_always_stay():
    case = CASES["llava_onevision_mixed"]
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["random:ratio=0.1"])
    features = hosted.encode(inputs)
    keep = hosted.choose(inputs, features)
    for medium in features.media:
        kept = keep[medium.row, medium.places]
        assert medium.fixed.any()
        assert kept[medium.fixed].all()
        assert kept[~medium.fixed].sum() < (~medium.fixed).sum()


def test_a_view_for_each_request_shares_the_weights():
    case = CASES["qwen2_5_vl"]
    base = HostedModel(case.model)
    features = base.encode(case.inputs(), scores=["mean_attention"])
    settings = ["evs:rate=0.3", "evs:rate=0.6", "fastervlm:ratio=0.3,score=mean_attention", "pool:stride=2"]
    views = {setting: base.with_stages(reducers=[setting]) for setting in settings}
    wanted = {setting: view.generate(case.inputs(), features, **GREEDY) for setting, view in views.items()}
    assert len({tuple(ids[:, -STEPS:].flatten().tolist()) for ids in wanted.values()}) > 1
    wrong = []

    def ask(setting):
        for _ in range(3):
            if not torch.equal(views[setting].generate(case.inputs(), features, **GREEDY), wanted[setting]):
                wrong.append(setting)

    threads = [threading.Thread(target=ask, args=(setting,)) for setting in [*settings, *settings, *settings]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert views["evs:rate=0.3"].with_stages().reducers[0].config.rate == 0.3
    assert not views["evs:rate=0.3"].with_stages(reducers=[]).reducers


@torch.no_grad()
def test_the_towers_attention_decides():
    case = CASES["internvl"]
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["fastervlm:keep=3"])
    features = hosted.encode(inputs)
    keep = hosted.choose(inputs, features)
    for number, medium in enumerate(features.media):
        scores = features.scores_of(number)["cls_attention"].view(medium.frames, 16)
        kept = keep[medium.row, medium.places].view(medium.frames, 16)
        assert torch.equal(kept.nonzero()[:, 1].view(-1, 3), scores.topk(3).indices.sort(-1).values)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "llava_onevision_mixed"])
@torch.no_grad()
def test_the_words_behind_the_picture_decide(name):
    case = CASES[name]
    inputs = case.inputs()
    hosted = HostedModel(case.model, reducers=["cdpruner:keep=3,relevance=words"])
    features = hosted.encode(inputs)
    keep = hosted.choose(inputs, features)
    embed = case.model.get_input_embeddings()
    for number, medium in enumerate(features.media):
        last = max(int(other.places.max()) for other in features.media if other.row == medium.row)
        said = inputs["input_ids"][medium.row, last + 1 :]
        words = embed(said[inputs["attention_mask"][medium.row, last + 1 :].bool()])
        tokens, slots = as_tokens(medium, features.tokens(number), {})
        relevance = torch.cosine_similarity(tokens.features[0], words.mean(0), dim=-1)
        relevance = scaled_relevance(relevance, "partition", tokens.mask[0])
        chosen = determinantal_order(relevance_kernel(tokens.features[0], relevance), relevance, 3, tokens.mask[0])
        expected = medium.fixed.clone()
        expected[slots.gather(1, chosen).flatten()] = True
        assert torch.equal(keep[medium.row, medium.places], expected)
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][:, -1] = 33
    assert not torch.equal(hosted.choose(other, features), keep)
    hosted.generate(inputs, features, **GREEDY)


def test_a_relevance_of_ones_own_decides():
    medium, rows = a_medium(frames=2)
    relevance = torch.rand(len(rows), generator=torch.Generator().manual_seed(1))
    reduced = chain("cdpruner:keep=5,relevance=given").of_medium(medium, rows, {"relevance": relevance})
    scaled = scaled_relevance(relevance.view(2, 24), "partition")
    order = determinantal_order(relevance_kernel(rows.view(2, 24, 8), scaled), scaled, 5)
    assert torch.equal(reduced.keep.view(2, 24).nonzero()[:, 1].view(2, 5), order.sort(-1).values)


def test_answers_are_no_words_of_the_question():
    medium, _ = a_medium(frames=1, grid=(2, 2))
    placed = replace(medium, row=0, places=torch.tensor([2, 3, 4, 5]))
    ids = torch.tensor([[0, 9, 5, 5, 5, 5, 7, 8, 6, 0]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[0] + [1] * 8 + [0]])}
    assert text_behind(inputs, [placed], 0).tolist() == [7, 8, 6]
    labels = torch.full_like(ids, -100)
    labels[0, 8] = 6
    assert text_behind({**inputs, "labels": labels}, [placed], 0).tolist() == [7, 8]


REFUSED = {
    ("llava", "cdpruner:keep=4"): r"'cdpruner' reads the question in another vocabulary.*use .*cdpruner:relevance=none",
    ("qwen3_vl", "sparsevlm:layers=0,ratios=0.5"): r"'sparsevlm' counts positions anew.*use positions=keep",
    ("qwen2_5_vl", "fastervlm:keep=4"): r"'cls_attention' cannot be read.*use .*evs.*fastervlm:score=mean_attention",
    ("qwen2_5_vl", "hired:ratio=0.5,score=mean_attention"): r"'mean_attention@0': block 0 attends inside windows",
    ("qwen2_vl", "fastervlm:keep=4,score=probe_attention"): "'probe_attention' cannot be read",
    ("qwen3_vl", "diffrate:keep=4"): r"'diffrate' works inside the blocks of an encoder of ours.*use .*random",
    ("llava", "diffrate:keep=4"): "'diffrate' works inside the blocks",
    ("internvl", "prefix:keep=4"): r"'prefix' keeps the first of ordered 1D tokens.*fastervlm:score=cls_attention",
    ("perception_lm", "fastervlm:keep=4"): r"cannot be read from this model's tower; .*'perception_lm' use .*uniform",
    ("gemma3", "fastv:layer=1"): r"stages work only in layers with full_attention.*evs, uniform and random",
    ("qwen3_5", "fastv:layer=1"): "this LLM has linear_attention",
    ("qwen3_vl", "hird:ratio=1"): "did you mean 'hired'",
}


@pytest.mark.parametrize(("name", "reducer", "message"), [(*key, message) for key, message in REFUSED.items()])
def test_what_cannot_work_is_refused_with_what_can(name, reducer, message):
    with pytest.raises(ConfigError, match=message):
        HostedModel(CASES[name].model, reducers=[reducer])


def test_the_advice_fits_the_model():
    def advice(name):
        model = CASES[name].model
        return fitting(HostedModel(model).family.towers(model), model.get_decoder())

    assert not {"fastv", "atp"} & {entry.partition(":")[0] for entry in advice("gemma3")}
    assert "fastv" in advice("qwen3_vl")
    assert "hired:score=mean_attention" in advice("qwen2_vl")
    assert not any(entry.startswith("hired") for entry in advice("qwen2_5_vl"))
    assert {"hired:score=cls_attention", "fastervlm:score=cls_attention"} <= set(advice("video_llava"))
    assert not any("score" in entry for entry in advice("perception_lm"))


def test_media_that_a_reducer_cannot_work_on():
    case = CASES["llava_next"]
    hosted = HostedModel(case.model, reducers=["pool:stride=2"])
    with pytest.raises(InputError, match=r"'pool' needs tokens on one grid, and the image in row 0 has none"):
        hosted.generate(case.inputs(), **GREEDY)
    small, rows = a_medium(frames=1, grid=(1, 4))
    with pytest.raises(InputError, match="patch grid of at least 2x2"):
        chain("pool:stride=2").of_medium(small, rows)
    medium, rows = a_medium()
    with pytest.raises(ConfigError, match="mode=max is no weighted sum"):
        chain("pool:stride=2,mode=max").of_medium(medium, rows)
    with pytest.raises(InputError, match="'mean_attention'; these tokens carry none"):
        chain("fastervlm:keep=2,score=mean_attention").of_medium(medium, rows)
    with pytest.raises(InputError, match="keep = 25: a frame has only 24"):
        chain("random:keep=25").of_medium(medium, rows)


class Doubles(TokenReducer):
    """Changes features and does not say how."""

    registered_name = "doubles"

    def forward(self, tokens):
        return tokens.replace(features=tokens.features * 2)


class Nothing(TokenReducer):
    """Keeps nothing."""

    registered_name = "nothing"

    def forward(self, tokens):
        return tokens.replace(mask=torch.zeros_like(tokens.mask))


class Shorter(TokenReducer):
    """Drops a frame."""

    registered_name = "shorter"

    def forward(self, tokens):
        from mmllm.tokens import VisualTokens

        return VisualTokens(features=tokens.features[:, :-1], grid=tokens.grid)


def test_reducers_that_break_the_rules():
    medium, rows = a_medium()
    with pytest.raises(ConfigError, match="'doubles' merges tokens and does not say by which weights"):
        ReducerChain([Doubles()]).of_medium(medium, rows)
    with pytest.raises(InputError, match="leave nothing of a video"):
        ReducerChain([Nothing()]).of_medium(medium, rows)
    with pytest.raises(InputError, match="'shorter' must keep 4 frames, not 3"):
        ReducerChain([Shorter()]).of_medium(medium, rows)


def test_how_reducers_are_given():
    model = CASES["qwen2_vl"].model
    assert len(HostedModel(model, reducers="evs:rate=0.5").reducers) == 1  # a single one stands for a list
    assert len(HostedModel(model, stages="fastv:layer=1").stages) == 1
    with pytest.raises(ConfigError, match="'evs' works before the LLM: give it among reducers"):
        HostedModel(model, stages=["evs:rate=0.5"])
    with pytest.raises(ConfigError, match="give one of the two"):
        HostedModel(model, reducers=["evs:rate=0.5"], reduction=lambda inputs, features: None)
    built = registry.build("reducer", "evs:rate=0.5")
    assert HostedModel(model, reducers=[built]).reducers[0] is built
    with pytest.raises(ConfigError, match="attention of this model's vision tower cannot be read"):
        HostedModel(CASES["perception_lm"].model).encode(CASES["perception_lm"].inputs(), scores=["mean_attention"])
