from dataclasses import MISSING, dataclass, fields

import pytest

from mmllm import registry
from mmllm.errors import ConfigError
from mmllm.fields import from_mapping


def test_a_part_described_in_text_in_a_mapping_and_as_an_object_is_the_same():
    from_text = registry.config_of("path", "slowfast:mode=temporal,pool=3")
    from_mapping = registry.config_of("path", {"name": "slowfast", "mode": "temporal", "pool": "3"})
    assert from_text == from_mapping == registry.config_of("path", from_text)
    assert registry.config_of("path", registry.describe("path", from_text)) == from_text


def test_unknown_names_come_with_close_matches_and_the_list():
    with pytest.raises(ConfigError, match=r"unknown path 'slowfats'; did you mean 'slowfast'.*\? known: .*slowfast"):
        registry.find("path", "slowfats")
    with pytest.raises(ConfigError, match="has no field 'poool'; did you mean 'pool'"):
        registry.config_of("path", "slowfast:poool=2")
    with pytest.raises(ConfigError, match="should be field=value"):
        registry.config_of("path", "slowfast:pool")
    with pytest.raises(ConfigError, match="needs a name"):
        registry.config_of("path", {"pool": 2})


def test_values_that_are_not_allowed_name_field_value_and_what_is():
    with pytest.raises(ConfigError, match=r"SlowFastConfig.pool = 0: must be at least 1"):
        registry.config_of("path", "slowfast:pool=0")
    with pytest.raises(ConfigError, match=r"slowfast.mode = 'fast': must be one of 'temporal'"):
        registry.config_of("path", "slowfast:mode=fast")


def test_a_name_can_be_taken_once_and_a_config_must_be_frozen():
    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    class First:
        pass

    class Second:
        pass

    registry.register("path", "test-only", config=Config)(First)
    try:
        with pytest.raises(ValueError, match="already registered"):
            registry.register("path", "test-only", config=Config)(Second)
    finally:
        del registry._parts["path"]["test-only"]
    with pytest.raises(ValueError, match="frozen dataclass"):
        registry.register("path", "other", config=dict)
    with pytest.raises(ValueError, match="unknown kind"):
        registry.register("room", "other", config=Config)


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_part_says_what_it_is_and_its_settings_are_documented(kind):
    found = registry.parts(kind)
    assert found
    for part in found.values():
        assert part.summary.endswith("."), part.name
        assert part.config.__doc__, part.name


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_fields_without_a_default_are_named_if_they_are_missing(kind):
    for name, part in registry.parts(kind).items():
        plain = [field for field in fields(part.config) if field.init and field.default_factory is MISSING]
        if needed := [field.name for field in plain if field.default is MISSING]:
            with pytest.raises(ConfigError, match=f"^{name}: {' and '.join(needed)} must be given$"):
                registry.config_of(kind, name)


def test_several_fields_without_a_default_are_named_together():
    @dataclass(frozen=True, kw_only=True)
    class Config:
        folder: str
        count: int
        share: float = 0.5

    for given, missing in (({}, "folder and count"), ({"count": 1}, "folder")):
        with pytest.raises(ConfigError, match=f"^part: {missing} must be given$"):
            from_mapping(Config, given, "part")
