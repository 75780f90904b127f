"""Choices, their cost before the model runs, and the reason why some are impossible."""

from dataclasses import replace

import pytest

from mmllm.app.settings import Settings, context_choices, cost_of, path_choices, reducer_choices
from mmllm.errors import ConfigError, InputError


def test_every_registered_part_can_be_chosen():
    assert {"as trained", "none", "fastervlm", "hired", "random", "uniform"} <= set(reducer_choices())
    assert {"as trained", "slowfast", "slowfast:mode=temporal"} <= set(path_choices())
    assert {"everything", "full", "h2o", "streaming", "keyformer", "window", "random"} <= set(context_choices())


@pytest.mark.parametrize(
    ("reducer", "stages"),
    [
        ("as trained", None),
        ("none", []),
        ("uniform", ["uniform:ratio=0.5"]),
        ("hired:keep=3,alpha=0.2", ["hired:keep=3,alpha=0.2"]),
        ("diffrate", ["diffrate"]),  # has no ratio
    ],
)
def test_the_share_goes_to_reducers_that_take_one(reducer, stages):
    assert Settings(frames=4, reducer=reducer, share=0.5).stages["reducers"] == stages


def test_policies_of_the_cache_are_settings(engine):
    assert Settings(frames=4).stages["context"] is None
    chosen = Settings(frames=4, context="full h2o:heavy=4,recent=4")
    assert chosen.stages["context"] == ["full", "h2o:heavy=4,recent=4"]
    assert str(chosen).endswith(", context full h2o:heavy=4,recent=4")
    whole, part = (cost_of(engine.qa, replace(engine.own_settings, context=name)) for name in ("full", chosen.context))
    assert part.tokens == whole.tokens
    assert part.cache_bytes * whole.tokens == 8 * whole.cache_bytes


def test_the_cost_told_before_is_the_cost_that_is_paid(engine, short_clip):
    for changes in ({}, {"reducer": "uniform", "share": 0.5}, {"path": "slowfast:mode=temporal", "frames": 5}):
        settings = replace(engine.own_settings, **changes)
        cost = cost_of(engine.qa, settings)
        encoded, _ = engine.encode_video(short_clip, settings)
        assert cost.tokens == sum(n for name, n in encoded.token_counts.items() if name not in ("encoder", "reducers"))
        assert cost.stages[0]["tokens"] == encoded.token_counts["encoder"]
        assert cost.cache_bytes > 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reducer": "diffrate:keep=4"}, "inside the blocks"),
        ({"reducer": "fastervlm:keep=99"}, "only 16 tokens"),
        ({"path": "slowfast:pool=3"}, "divisible"),
        ({"reducer": "hird"}, "did you mean 'hired'"),
        ({"path": "tdc_"}, "unknown path"),
        ({"context": "h20"}, "did you mean 'h2o'"),
        ({"context": "h2o window"}, "one stage at most removes keys"),
    ],
)
def test_impossible_choices_are_refused_with_the_reason(engine, changes, why):
    settings = replace(engine.own_settings, **changes)
    with pytest.raises(InputError, match=why):
        cost_of(engine.qa, settings)


def test_fields_are_checked():
    with pytest.raises(ConfigError, match="share"):
        Settings(frames=4, share=0.0)
    with pytest.raises(ConfigError, match="frames"):
        Settings(frames=0)
