"""Which model a name stands for."""

import pytest

from mmllm.errors import CheckpointError
from mmllm.hub import sources
from mmllm.hub.sources import DEFAULT, checked_source


def test_default_names_the_packaged_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    (packaged / "config.json").write_text("{}")
    monkeypatch.setattr(sources, "PACKAGED", packaged)
    assert checked_source(DEFAULT) == str(packaged)


def test_a_package_without_a_model_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "PACKAGED", tmp_path / "packaged")
    with pytest.raises(CheckpointError, match=r"--model.*mmllm quickstart"):
        checked_source(DEFAULT)


def test_a_folder_of_that_name_that_holds_a_model_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).mkdir()
    (tmp_path / DEFAULT / "config.json").write_text("{}")
    assert checked_source(DEFAULT) == DEFAULT


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such folder"), ("a/b/c", "hub id has the form owner/name")])
def test_what_cannot_be_a_model_is_refused(name, said):
    with pytest.raises(CheckpointError, match=said):
        checked_source(name)


def test_the_environment_says_what_default_stands_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    for named, expected in (("own", "own"), ("default-small", str(sources.PACKAGED)), ("owner/name", "owner/name")):
        monkeypatch.setenv(sources.DEFAULT_VARIABLE, named)
        assert checked_source(DEFAULT) == expected
    monkeypatch.setenv(sources.DEFAULT_VARIABLE, "gone")
    with pytest.raises(CheckpointError, match="MMLLM_DEFAULT_MODEL: gone: there is no such folder"):
        checked_source(DEFAULT)


def test_the_packaged_models_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "PACKAGED_SPEAKING", tmp_path / "gone")
    assert checked_source(sources.DEFAULT_SMALL) == str(sources.PACKAGED)
    with pytest.raises(CheckpointError, match="mmllm train speak"):
        checked_source(sources.DEFAULT_SPEAKS)
    monkeypatch.setattr(sources, "PACKAGED_SPEAKING", sources.PACKAGED)
    assert checked_source(sources.DEFAULT_SPEAKS) == str(sources.PACKAGED)
