"""A saved folder in programs that know transformers only: with mmllm installed, and without."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from mmllm.hub.remote_code import AUTO_MAP, MODULE
from mmllm.model import MmllmForConditionalGeneration
from mmllm.processor import MmllmProcessor

LOAD = """
import json, sys, transformers
found = {}
for name in sys.argv[2:]:
    found[name] = getattr(transformers, name).from_pretrained(sys.argv[1], trust_remote_code=True)
assert "AutoModel" not in found or found["AutoModel"].config.auto_map
for name in ("AutoModel", "AutoProcessor"):
    if name in found:
        found[name].save_pretrained(sys.argv[1] + "/again")
print(json.dumps({name: type(value).__name__ for name, value in found.items()}))
"""
WITHOUT_MMLLM = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mmllm":
            raise ModuleNotFoundError("No module named 'mmllm'", name="mmllm")
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def saved(untrained_qa, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    untrained_qa.model.save_pretrained(folder)
    untrained_qa.processor.save_pretrained(folder)
    return folder


def python(code, *arguments, cache):
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


def test_a_folder_is_loaded_by_programs_that_import_transformers_only(saved, tmp_path):
    done = python(LOAD, saved, *AUTO_MAP, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    model = "MmllmForConditionalGeneration"
    assert found == {
        "AutoConfig": "MmllmConfig",
        "AutoModel": model,
        "AutoModelForImageTextToText": model,
        "AutoModelForMultimodalLM": model,
        "AutoProcessor": "MmllmProcessor",
    }
    files = {path.name for path in (saved / "again").iterdir()}
    assert {name for name in files if name.endswith(".py")} == {f"{MODULE}.py"}  # no copy of our own files
    assert json.loads((saved / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoProcessor"])
def test_without_mmllm_it_says_how_to_install_it(saved, tmp_path, name):
    done = python(WITHOUT_MMLLM + LOAD, saved, name, cache=tmp_path)
    assert done.returncode
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: this model needs the Python package mmllm: run `pip install .`")


def test_an_older_folder_without_the_file_loads_as_before(saved, tmp_path, untrained_qa):
    untrained_qa.model.save_pretrained(tmp_path)
    (tmp_path / f"{MODULE}.py").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[n]) for n, value in untrained_qa.model.state_dict().items())


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_every_auto_class_knows_the_model(saved, auto):
    assert type(auto.from_pretrained(saved)) is MmllmForConditionalGeneration
    assert type(auto.from_config(AutoConfig.from_pretrained(saved))) is MmllmForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(saved)) is MmllmProcessor
