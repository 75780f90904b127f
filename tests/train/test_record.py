"""The record of a run: a new one is deleted if the run is refused; one of an earlier start never is."""

import json

import pytest

from mmllm.errors import ConfigError, InputError
from mmllm.train.record import claim, withdrawn_if_refused


def test_a_new_record_is_taken_back_and_an_earlier_one_is_kept(tmp_path):
    record = tmp_path / "recipe.json"

    def refused():
        with withdrawn_if_refused(record):
            claim(record, {"seed": 0})
            raise InputError("no data")

    with pytest.raises(InputError, match="no data"):
        refused()
    assert not record.exists()
    with withdrawn_if_refused(record):
        claim(record, {"seed": 1})
    with pytest.raises(ConfigError, match="seed: 1 -> 2"), withdrawn_if_refused(record):
        claim(record, {"seed": 2})
    assert json.loads(record.read_text()) == {"seed": 1}


def test_what_an_older_version_wrote_is_read_in_todays_form(tmp_path):
    record = tmp_path / "recipe.json"
    claim(record, {"steps": 5})
    with pytest.raises(ConfigError, match=r"steps: 5 -> \(nothing\); max_steps: \(nothing\) -> 5"):
        claim(record, {"max_steps": 5})
    claim(record, {"max_steps": 5}, read=lambda old: {"max_steps": old["steps"]})
    assert json.loads(record.read_text()) == {"max_steps": 5}
