"""The stages of a model: changed in a trained one, inside the LLM, in a description that every command shares."""

import dataclasses
import random
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from mmllm import registry
from mmllm.config import MmllmConfig
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import stage_costs
from mmllm.inference.decisions import encoded_for
from mmllm.interfaces import LlmStage, Part, TokenReducer, VideoPath
from mmllm.llm.values import KeptKeys
from mmllm.pruning.ranked import BudgetReducer
from mmllm.registry import Kind, register
from mmllm.stages import SLOTS, Slot

IDS, MASK = torch.tensor([[0, 5, 200, 6, 7, 8], [5, 200, 3, 9, 8, 9]]), torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
DEEP = {"num_hidden_layers": 4}
CLIP = "clip:image_size=16,patch_size=4,width=16,layers=4,heads=2,mlp_width=32"
ATP = "atp:depths=0.25+0.75,ratio=0.6"
FASTV = "fastv:layer=2,ratio=0.25"


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def build(make_model):
    """Makes a model with the given reducers; its thresholds, if it has some, drop about half of the tokens."""

    def make(*reducers, path="plain"):
        model = make_model(reducers=list(reducers), path=path, decoder=DEEP)
        for reducer in model.reducers:
            for stage in getattr(reducer, "stages", ()):
                nn.init.constant_(stage.head_r.bias, 0.0)
                nn.init.constant_(stage.head_s.bias, 30.0)
        return model

    return make


@torch.no_grad()
def lengths(model, pixels):
    """How many keys each layer keeps of a prompt."""
    cache = model(IDS, attention_mask=MASK, pixel_values_videos=pixels, use_cache=True).past_key_values
    return [layer.keys.shape[2] for layer in cache.layers]


def ids(model, pixels, **options):
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(IDS, attention_mask=MASK, pixel_values_videos=pixels, **greedy, **options)


# --- other stages in a trained model ------------------------------------------------------------------------


@pytest.mark.parametrize("reducers", [[FASTV], ["random:keep=8", FASTV]])
def test_a_stage_inside_the_llm_that_is_set_later_works_as_one_that_is_built_in(build, pixels, reducers):
    own, built = build(), build(*reducers)
    built.load_state_dict(own.state_dict())
    later = own.with_stages(reducers=reducers)
    whole = lengths(own, pixels)
    assert lengths(later, pixels) == lengths(built, pixels)
    assert lengths(built, pixels)[2] < lengths(built, pixels)[1]
    assert lengths(own, pixels) == whole  # the model itself is as it was
    assert torch.equal(ids(later, pixels), ids(built, pixels))
    assert torch.equal(ids(later, pixels, num_beams=3), ids(built, pixels, num_beams=3))


@pytest.mark.parametrize("order", [[ATP, FASTV], [FASTV, ATP]])
def test_atp_alone_and_with_fastv_answers_as_a_model_that_is_built_with_them(build, pixels, order):
    trained, both = build(ATP), build(*order)
    place = order.index(ATP)
    state = {name.replace("reducers.0.", f"reducers.{place}."): value for name, value in trained.state_dict().items()}
    both.load_state_dict(state)
    alone = trained.with_stages(reducers=[])
    assert lengths(alone, pixels) == [5 + 4 * 16] * 4
    assert lengths(trained, pixels)[-1] < lengths(trained, pixels)[0]
    assert lengths(both, pixels)[2] < lengths(trained, pixels)[2]
    again = both.with_stages(path="plain")
    assert lengths(again, pixels) == lengths(both, pixels)
    assert torch.equal(ids(again, pixels), ids(both, pixels))
    assert torch.equal(ids(both, pixels), ids(both, pixels, use_cache=False))


def test_weights_are_shared_and_nothing_is_drawn_anew(build):
    own = build()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    later = own.with_stages(reducers=["fastervlm:keep=4"], path="slowfast:image_frames=4")
    for name, value in later.state_dict().items():
        assert value.data_ptr() == own.state_dict()[name].data_ptr()
        assert torch.equal(value, before[name])
    assert later.config.reducers[0]["name"] == "fastervlm"
    assert own.config.reducers == []


def test_what_cannot_be_changed_is_refused(build, make_model):
    with pytest.raises(ConfigError, match="'atp' has weights of its own"):
        build().with_stages(reducers=[ATP])
    with pytest.raises(ConfigError, match="'anyres' has weights of its own"):
        build().with_stages(path="anyres")
    with pytest.raises(ConfigError, match="'encoder' cannot be changed in a trained model"):
        build().with_stages(encoder="clip")
    with pytest.raises(ConfigError, match="layer = 9: must be below the LLM's 4 layers"):
        build().with_stages(reducers=["fastv:layer=9"])
    with pytest.raises(ConfigError, match="one reducer at most works inside the encoder"):
        make_model(encoder=CLIP, reducers=["diffrate:keep=4", "diffrate:keep=2"])


def test_fifty_asks_from_two_threads_are_those_of_two_models(build, pixels):
    own = build()
    variants = {keep: own.with_stages(reducers=[f"fastv:layer=1,ratio={keep}"]) for keep in (0.1, 0.9)}
    apart = {}
    for keep in variants:
        apart[keep] = build(f"fastv:layer=1,ratio={keep}")
        apart[keep].load_state_dict(own.state_dict())
    videos = torch.randn(5, 2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    wanted = {(keep, i): ids(apart[keep], videos[i]) for keep in variants for i in range(5)}
    assert any(not torch.equal(wanted[0.1, i], wanted[0.9, i]) for i in range(5))
    asked = [(keep, i) for keep in variants for i in range(5)] * 5
    random.Random(0).shuffle(asked)
    wrong = []

    def work(mine):
        wrong.extend(key for key in mine if not torch.equal(ids(variants[key[0]], videos[key[1]]), wanted[key]))

    threads = [threading.Thread(target=work, args=(asked[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 50
    assert not wrong


# --- what is shown of a stage -------------------------------------------------------------------------------


def test_every_stage_inside_the_llm_can_be_shown(untrained_qa, short_clip):
    plain = untrained_qa.with_stages(path="plain")
    encoded = plain.encode_video(short_clip)
    for reducers in ([FASTV.replace("layer=2", "layer=1")], ["fastervlm:keep=8", "fastv:layer=1"]):
        qa = plain.with_stages(reducers=reducers)
        seen = encoded_for(qa, qa.encode_again(encoded), "When does the red circle spin?")
        assert seen.kept.sum() < qa.encode_again(encoded).kept.sum()
        assert "FastV" in seen.ranking[0]


def test_a_reducer_that_writes_only_a_ranking_is_shown_under_its_name(untrained_qa, short_clip):
    @dataclass(frozen=True, kw_only=True)
    class BrightConfig:
        keep: int = 3

    @register("reducer", "bright", config=BrightConfig)
    class Bright(TokenReducer):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def ranking(self, tokens):
            return tokens.features.mean(-1)

        def forward(self, tokens):
            return tokens.take(self.ranking(tokens).topk(self.config.keep).indices.sort().values)

    try:
        encoded = untrained_qa.with_stages(reducers=["bright:keep=2"]).encode_video(short_clip)
        assert encoded.ranking[0] == "bright"
        assert encoded.kept.sum() == 2 * len(encoded.clip)
    finally:
        registry._parts["reducer"].pop("bright")


def test_a_budget_reducer_needs_a_ranking_and_nothing_else(make_model):
    from mmllm.pruning.budget import Budget

    @dataclass(frozen=True, kw_only=True)
    class NormConfig(Budget):
        pass

    @register("reducer", "norm", config=NormConfig)
    class Norm(BudgetReducer):
        def ranking(self, tokens):
            return tokens.features.norm(dim=-1)

    try:
        model = make_model(reducers=["norm:ratio=0.25"])
        tokens = model.encode(torch.randn(1, 3, 3, 64, 64))
        assert model.reduce(tokens).shape[2] == 4
        assert stage_costs("tiny", ["norm:keep=5"], "linear", "plain", 10)[1]["tokens"] == 50
    finally:
        registry._parts["reducer"].pop("norm")


# --- parts that are built ------------------------------------------------------------------------------------


def test_a_path_with_weights_is_built_by_the_llms_width_wherever_it_is_named(build, make_model):
    @dataclass(frozen=True, kw_only=True)
    class SlantConfig:
        pass

    @register("path", "slant", config=SlantConfig)
    class Slant(VideoPath):
        def __init__(self, config, *, width):
            super().__init__()
            self.config, self.shift = config, nn.Parameter(torch.zeros(width))

        def forward(self, tokens):
            from mmllm.paths.plain import in_order

            return in_order(tokens.replace(features=tokens.features + self.shift))

        def token_counts(self, frames, grid, tokens_per_frame):
            return {"frames": frames * tokens_per_frame}

    try:
        assert make_model(path="slant").path.shift.shape == (32,)
        assert stage_costs("tiny", [], "linear", "slant", 3)[-1]["tokens"] == 48
        with pytest.raises(ConfigError, match="'slant' has weights of its own"):
            build().with_stages(path="slant")
    finally:
        registry._parts["path"].pop("slant")


def test_a_part_of_an_older_package_is_given_the_defaults_of_its_kind(make_model):
    @dataclass(frozen=True, kw_only=True)
    class FirstConfig:
        keep: int = 2

    @register("reducer", "first", config=FirstConfig)
    class First(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.config = config

        def forward(self, tokens):
            b, t, _, _ = tokens.shape
            return tokens.take(torch.arange(self.config.keep).expand(b, t, -1))

    try:
        model = make_model(reducers=["first:keep=3"])
        assert isinstance(model.reducers[0], First)
        assert isinstance(model.reducers[0], TokenReducer)
        assert model.scores_needed == ()
        assert model.reduce(model.encode(torch.randn(1, 2, 3, 64, 64))).shape[2] == 3
    finally:
        registry._parts["reducer"].pop("first")


def test_tokens_of_a_resampler_and_the_grid_of_a_pool_are_counted():
    mqt = stage_costs("clip:image_size=224", [], "mqt:tokens=16,queries=16", "plain", 3)
    assert [row["tokens"] for row in mqt] == [768, 48, 48]
    pooled = stage_costs("tiny", ["pool:stride=2"], "linear", "slowfast:mode=spatial_pool,pool=2", 8)
    assert [row["tokens"] for row in pooled] == [128, 32, 32, 4]


def test_a_path_that_gives_plains_tokens_has_plains_rule_inside_the_llm(build, pixels):
    """What counts is the grid of the sequence, and not what the path is called."""

    @dataclass(frozen=True, kw_only=True)
    class SameConfig:
        pass

    @register("path", "same", config=SameConfig)
    class Same(type(build().path)):
        pass

    try:
        plain, same = build(ATP), build(ATP, path="same")
        same.load_state_dict(plain.state_dict())
        assert same.config.path["name"] == "same"
        assert lengths(same, pixels) == lengths(plain, pixels)
        assert torch.equal(ids(same, pixels), ids(plain, pixels))
    finally:
        registry._parts["path"].pop("same")


# --- a new kind of part --------------------------------------------------------------------------------------


def test_a_new_kind_of_part_takes_a_kind_a_slot_and_nothing_else(build, pixels, monkeypatch, tmp_path):
    """What `CONTRIBUTING.md` says of a new kind: an entry in KINDS, an entry in SLOTS, and the part's own file."""

    class CachePolicy(LlmStage):
        evicts = True

    monkeypatch.setitem(registry.KINDS, "memory", Kind(rooms=("times",), interface="mmllm.interfaces:LlmStage"))
    monkeypatch.setitem(registry._parts, "memory", {})
    monkeypatch.setitem(SLOTS, "memory", Slot(kind="memory", default=(), several=True, changeable=True))

    @dataclass(frozen=True, kw_only=True)
    class RecentConfig:
        keep: int = 8

    @register("memory", "recent", config=RecentConfig)
    class Recent(CachePolicy, Part):
        def __init__(self, config):
            self.config = config

        def evict(self, view):
            count = view.keys.shape[2]
            kept = torch.arange(max(0, count - self.config.keep), count)
            return KeptKeys(index=kept.expand(len(view.keys), view.keys.shape[1], -1))

    model = build("fastv:layer=2,ratio=0.5")
    later = model.with_stages(memory=["recent:keep=20"])
    assert lengths(later, pixels) == [20] * 4
    assert later.config.to_dict()["memory"] == [{"name": "recent", "keep": 20}]
    later.save_pretrained(tmp_path)
    loaded = type(later).from_pretrained(tmp_path).eval()
    assert lengths(loaded, pixels) == [20] * 4
    assert torch.equal(ids(loaded, pixels), ids(later, pixels))
    with pytest.raises(ConfigError, match="prompt_lookup_num_tokens"):
        ids(later, pixels, prompt_lookup_num_tokens=3)
    with pytest.raises(ConfigError, match="use_cache = False"):
        ids(later, pixels, use_cache=False)
    with pytest.raises(ConfigError, match="cache_implementation = 'static'"):
        ids(later, pixels, cache_implementation="static")


def test_guessed_tokens_are_taken_back_from_layers_of_different_lengths(build, pixels):
    """Prompt lookup verifies guesses and crops the cache; what a stage removed from the prompt stays removed."""
    model = build(FASTV)
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for row in range(2):
        asked = {"input_ids": IDS[row : row + 1, 1 - row :], "pixel_values_videos": pixels[row : row + 1], **greedy}
        assert torch.equal(model.generate(**asked), model.generate(**asked, prompt_lookup_num_tokens=3))


@pytest.mark.parametrize("slot", ["reducers", "context"])
def test_one_part_by_itself_is_a_list_of_one(build, make_model, tmp_path, slot):
    text = {"reducers": "uniform:keep=2", "context": "h2o:heavy=8"}[slot]
    name, _, field = text.partition(":")
    key, _, value = field.partition("=")
    config = registry.config_of(SLOTS[slot].kind, text)
    model = make_model()
    model.save_pretrained(tmp_path)
    for given in (text, {"name": name, key: int(value)}, config, [text], (text,)):
        described = SLOTS[slot].described(given)
        assert [part["name"] for part in described] == [name]
        assert described[0][key] == int(value)
        assert getattr(model.with_stages(**{slot: given}).config, slot) == described
        assert getattr(MmllmConfig(**{slot: given}), slot) == described
        assert getattr(MmllmConfig.from_pretrained(tmp_path, **{slot: given}), slot) == described
    assert getattr(MmllmConfig.from_pretrained(tmp_path, **{slot: None}), slot) == []
    with pytest.raises(ConfigError, match=f"unknown {SLOTS[slot].kind} ''"):
        model.with_stages(**{slot: ""})


def test_settings_are_complete_in_the_configuration(build):
    described = build("fastv").config.reducers[0]
    assert described == {"name": "fastv", "layer": 2, "ratio": 0.5, "merge": False}
    assert {field.name for field in dataclasses.fields(Slot)} >= {"kind", "default", "several", "changeable"}


def test_variants_can_be_asked_through_the_answering_object(untrained_qa, short_clip):
    qa = untrained_qa.with_stages([], "plain")
    assert isinstance(qa, VideoQA)
    fewer = qa.with_stages(reducers=["fastv:layer=1,ratio=0.1"])
    encoded = qa.encode_video(short_clip)
    assert fewer.ask(encoded, "When does the red circle spin?").raw == (
        fewer.ask(fewer.encode_video(short_clip), "When does the red circle spin?").raw
    )
