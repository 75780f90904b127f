"""Presets name what really exists, and a preset's name works wherever a model is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmllm import cli, registry
from mmllm.checkpoints.loading import families, local_folder
from mmllm.checkpoints.towers import LOADERS
from mmllm.errors import CheckpointError
from mmllm.hub.packages import packaged_file
from mmllm.hub.presets import PRESETS
from mmllm.hub.sources import checked_source
from mmllm.preprocessing.templates import TEMPLATES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_an_adapter_a_template_and_a_source(name):
    preset = PRESETS[name]
    if preset.kind in ("model", "language_model"):
        assert preset.adapter in {"model": families(), "language_model": ["transformers"]}[preset.kind]
        assert preset.template in TEMPLATES
    else:
        assert preset.adapter in LOADERS
        described = preset.encoder or {"name": preset.adapter, "image_size": preset.input_size}
        assert registry.config_of("encoder", described).image_size == preset.input_size
    if preset.kind == "tokenizer":
        assert registry.config_of("autoencoder", preset.adapter).image_size == preset.input_size
    assert checked_source(preset.source) == preset.source
    if preset.kind == "language_model":
        with pytest.raises(CheckpointError, match=f"{name} is an LLM without an encoder: name it as language_model"):
            checked_source(name)
    else:
        assert checked_source(name) == preset.source
    assert preset.verified.endswith("not at hand") == (not preset.package)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.package])
def test_a_file_of_a_package_has_a_version_and_a_hash(name):
    file = packaged_file(PRESETS[name].package)
    assert file.version
    assert file.sha256
    assert file.path.startswith(file.package.replace("-", "_"))


def test_pixels_of_the_lite_networks_are_127_less_divided_by_128():
    for number, size in enumerate((224, 240, 260)):
        config = registry.config_of("encoder", PRESETS[f"efficientnet-lite{number}"].encoder)
        black, white = (config.frames(np.full((1, size, size, 3), value, np.uint8))[0, 0, 0, 0] for value in (0, 255))
        assert (black, white) == pytest.approx((-127 / 128, 1.0), abs=2e-6)
        assert config.model == f"tf_efficientnet_lite{number}"


def test_a_folder_comes_before_a_preset_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("llava-1.5-7b")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert checked_source("llava-1.5-7b") == "llava-1.5-7b"


def test_near_names_are_proposed():
    with pytest.raises(CheckpointError, match=r"did you mean 'llava-1.5-7b'"):
        checked_source("lava-1.5-7b")


def test_the_preset_is_what_is_downloaded(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert local_folder("llava-1.5-7b") == tmp_path
    assert asked == ["llava-hf/llava-1.5-7b-hf"]


def test_they_are_listed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["list", "presets", "--json"])
    rows = json.loads(capsys.readouterr().out)["presets"]
    assert {row["name"] for row in rows} == set(PRESETS)
    assert {"source", "licence", "input_size", "template", "adapter", "verified"} <= set(rows[0])


def test_names_and_sources_are_whole_however_narrow_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        cli.main(["list", "presets"])
    told = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert any(line.split() == [name, preset.source] for line in told.splitlines())


def test_every_family_has_a_preset():
    assert {preset.adapter for preset in PRESETS.values() if preset.kind == "model"} == set(families())
