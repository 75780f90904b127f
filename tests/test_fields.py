from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from mmllm.errors import ConfigError
from mmllm.fields import from_mapping, merged, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0
    name: str = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    flag: bool = False
    mode: Literal["x", "y"] = "x"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] = (1, 2)
    maybe: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_values_are_decoded_by_the_fields_type_and_not_by_how_they_are_written():
    read = from_mapping(
        Outer,
        {"count": "3", "flag": "on", "sizes": "3+6", "pair": [4, "5"], "maybe": "none", "inner": {"rate": "2e-5"}},
    )
    assert read == Outer(count=3, flag=True, sizes=(3, 6), pair=(4, 5), inner=Inner(rate=2e-5))
    assert from_mapping(Outer, to_mapping(read)) == read
    assert from_mapping(Outer, {"sizes": ""}) == Outer()  # an empty list as `mmllm list` writes it


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"count": 1.5}, "Outer.count = 1.5: must be int"),
        ({"count": True}, "Outer.count = True: must be int"),
        ({"flag": "maybe"}, "Outer.flag = 'maybe': must be bool"),
        ({"mode": "z"}, "must be one of 'x', 'y'"),
        ({"inner": {"rat": 1}}, "Outer.inner has no field 'rat'; did you mean 'rate'"),
        ({"inner": 3}, "must be a mapping"),
        ({"sizes": 3}, "must be a list"),
        ({"pair": [1]}, "must have 2 items"),
        ({"cuont": 1}, "has no field 'cuont'; did you mean 'count'"),
        ({"count": 10**60}, "must be a number below 2 ** 63"),
        ({"count": "9" * 60}, "must be a number below 2 ** 63"),
        ({"count": "9" * 5000}, "must be"),
        ({"count": 10**400}, "must be a finite number"),
        ({"count": float("inf")}, "must be a finite number"),
        ({"count": "²"}, "must be int"),
        ({"inner": {"rate": "1e309"}}, "must be a finite number"),
        ({"inner": {"rate": float("nan")}}, "must be a finite number"),
        ({"rates": {"a": "x"}}, "Outer.rates.a = 'x': must be float"),
        ({"mode": "z" * 99_999}, "must be one of"),
        ({"k" * 99_999: 1}, "has no field"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_place(mapping, message):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, mapping)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_merging_changes_nested_fields_one_by_one():
    start = Outer(count=7, inner=Inner(name="kept"))
    assert merged(start, {"inner": {"rate": "0.5"}}) == Outer(count=7, inner=Inner(name="kept", rate=0.5))
    with pytest.raises(ConfigError, match="inner has no field"):
        merged(start, {"inner": {"other": 1}})


def test_a_renamed_field_is_read_under_both_names_with_a_warning(caplog):
    from mmllm.train.schedule import TrainingSchedule

    assert from_mapping(TrainingSchedule, {"warmup_share": 0.2}).warmup_fraction == 0.2
    assert "TrainingSchedule.warmup_share is called warmup_fraction now" in caplog.text
    caplog.clear()
    assert merged(TrainingSchedule(), {"warmup_share": "0.3"}).warmup_fraction == 0.3
    assert len(caplog.records) == 1
    with pytest.raises(ConfigError, match="give one of them"):
        from_mapping(TrainingSchedule, {"warmup_share": 0.2, "warmup_fraction": 0.2})
