"""Every reducer says how it is set to a share of the tokens, and that leaves this share."""

import pytest

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.interfaces import LlmStage, TokenReducer
from mmllm.pruning.needs import where_it_acts
from mmllm.tuning.settings import ReducerSettings

TOKENS, FRAMES = 144, 10
TRAINED = {"atp"}
"""Its ratio is what its thresholds were trained for."""


@pytest.mark.parametrize("name", registry.parts("reducer"))
@pytest.mark.parametrize("share", [0.5, 0.25, 0.125])
def test_about_the_share_remains(name, share):
    cls = registry.find("reducer", name).cls
    fields = cls.settings_at(share, tokens=TOKENS, layers=32)
    if fields is None:
        assert (name, share) == ("pool", 0.5)
        return
    text = registry.text_of(name, fields)
    assert registry.config_of("reducer", text) == registry.config_of("reducer", {"name": name, **fields})
    if name in TRAINED:
        return
    if where_it_acts(cls) in ("behind the encoder", "behind the projector"):
        kept = registry.build("reducer", text).kept_tokens(TOKENS, FRAMES)
        assert kept == pytest.approx(
            share * TOKENS * FRAMES, rel={"pool": 0.3, "flashvid": 0.1, "holitom": 0.1}.get(name, 0.02)
        )


def test_settings_inside_the_llm_are_the_papers():
    def of(name, share, layers):
        return registry.find("reducer", name).cls.settings_at(share, tokens=576, layers=layers)

    assert of("fastv", 0.5, 32) == {"layer": 2, "ratio": 0.5}
    assert of("dart", 0.222, 32) == {"layer": 2, "ratio": 0.222}
    paper = of("pyramiddrop", 0.125, 32)
    assert (paper["layers"], paper["ratios"]) == ([8, 16, 24], pytest.approx([0.5, 0.25, 0.125]))
    for layers in range(2, 40):
        for name in ("fastv", "dart", "pyramiddrop", "sparsevlm"):
            part = registry.build("reducer", {"name": name, **of(name, 0.3, layers)})
            assert isinstance(part, LlmStage)
            part.check(layers)  # refuses a layer that there is not
    assert of("diffrate", 0.25, 24) == {"keep": 144}
    assert of("flashvid", 0.25, 24) == {"ratio": 0.25, "expansion": 1}
    assert of("pool", 0.05, 24) == {"stride": 4}
    assert TokenReducer.settings_at(0.3, tokens=9, layers=2) == {"ratio": 0.3}


def test_a_part_as_text_is_read_back():
    for name, fields in (("a", {}), ("b", {"x": 0.1, "y": [1, 2], "z": "w"}), ("c", {"r": (0.125, 1 / 3)})):
        assert registry.named("reducer", registry.text_of(name, fields))[0] == name
    assert registry.text_of("c", {"r": (0.125, 1 / 3), "n": 2}) == "c:r=0.125+0.333333,n=2"


def test_a_model_takes_what_fits_and_says_why_the_rest_does_not(untrained_qa):
    settings = ReducerSettings(untrained_qa)
    assert (settings.tokens, settings.layers) == (16, 2)
    assert settings.at("fastervlm", 0.25).flag == "fastervlm:ratio=0.25"
    # this encoder has a class token only: the score that fits is named
    assert settings.at("flashvid", 0.25).flag == "flashvid:ratio=0.25,expansion=1,score=cls_attention"
    assert settings.at("random:seed=3", 0.5).flag == "random:ratio=0.5,seed=3"
    assert settings.at("random:ratio=0.1", 0.5).flag == "random:ratio=0.1"
    taken, refused = settings.all_at(["uniform", "prefix", "pool", "atp", "uniform:keep=2"], [0.5, 0.25])
    assert [setting.flag for setting in taken] == ["uniform:ratio=0.5", "uniform:ratio=0.25", "pool:stride=2"]
    assert "no setting that keeps about 0.5 of 16 tokens" in refused["pool at 0.5"]
    assert "ordered 1D tokens" in refused["prefix at 0.25"]
    assert "weights of its own" in refused["atp at 0.5"]
    assert "exactly one of keep, ratio and total" in refused["uniform:keep=2 at 0.5"]
    with pytest.raises(ConfigError, match="unknown reducer 'unifrom'; did you mean 'uniform'"):
        settings.at("unifrom", 0.5)


def test_one_look_of_the_encoder_is_enough_for_all(untrained_qa, short_clip):
    settings = ReducerSettings(untrained_qa.with_stages(reducers=["uniform:keep=2"]))
    names = [name for name in registry.parts("reducer") if name != "diffrate"]
    encoded = settings.scout(names).encode_video(short_clip)
    assert int(encoded.tokens.mask.sum()) == 12 * 16, "every token is there, whatever the model's own reducers are"
    taken, _ = settings.all_at(names, [0.5])
    assert len(taken) > 10
    for setting in taken:
        assert not settings.qa.with_stages(reducers=[setting.flag]).needs_frames(encoded), setting.flag


def test_one_look_of_a_hosted_tower_is_enough_for_all(short_clip):
    from tiny_models import CASES
    from tiny_processors import processor

    from mmllm.hosting.model import HostedModel
    from mmllm.inference.hosted import HostedVideoQA

    model = HostedModel(CASES["qwen3_vl"].fresh(), processor("qwen3_vl"), reducers=["uniform:ratio=0.5"])
    settings = ReducerSettings(HostedVideoQA(model))
    assert settings.layers == model.model.get_decoder().config.num_hidden_layers
    names = list(registry.parts("reducer"))
    encoded = settings.scout(names).encode_video(short_clip, num_frames=4)
    assert encoded.token_counts["reducers"] == encoded.token_counts["encoder"]
    taken, refused = settings.all_at(names, [0.5])
    assert {"evs", "fastv"} <= {setting.reducer for setting in taken}
    assert any(setting.reducer in ("fastervlm", "vispruner") for setting in taken), "one that needs a score"
    assert "a hosted model runs its own tower" in refused["diffrate at 0.5"]
    for setting in taken:
        assert not settings.qa.with_stages(reducers=[setting.flag]).needs_frames(encoded), setting.flag
