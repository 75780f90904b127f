"""The core does not need the extras, and a command whose extra is missing says what to install."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from extras import NEEDED, TESTS

from mmllm import cli, registry
from mmllm.errors import EXTRAS, MissingExtra, is_installed, require_extra

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
IMPORTED = {
    "open_clip_torch": "open_clip",
    "python-multipart": "python_multipart",
}
"""Name in the registry -> name under which it is imported, where they differ."""


def names(requirements: list[str]) -> set[str]:
    distributions = {re.match(r"[\w-]+", requirement).group() for requirement in requirements}
    return {IMPORTED.get(name, name) for name in distributions}


@pytest.fixture
def without(monkeypatch):
    """Makes libraries look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*libraries):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in libraries else find(name))

    return hide


def test_the_table_of_extras_is_that_of_the_package():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {*EXTRAS, "all", "docs", "dev", "lmms-eval", "ray", "vllm"}
    for extra, libraries in EXTRAS.items():
        assert names(extras[extra]) == set(libraries), extra
        assert not names(PROJECT["dependencies"]) & set(libraries), f"the core has libraries of {extra}"
    assert extras["all"] == [f"mmllm[{','.join(EXTRAS)}]"]


def test_an_extra_of_several_packages_has_the_same_bounds_everywhere():
    bounds: dict[str, set[str]] = {}
    shared = [own for extra, own in PROJECT["optional-dependencies"].items() if extra != "lmms-eval"]  # has its own
    for requirements in [PROJECT["dependencies"], *shared]:
        for requirement in requirements:
            bounds.setdefault(re.match(r"[\w-]+", requirement).group(), set()).add(requirement)
    assert not {name: stated for name, stated in bounds.items() if name != "mmllm" and len(stated) > 1}


@pytest.mark.parametrize(
    ("arguments", "hidden", "line"),
    [
        (["demo"], ["gradio"], "mmllm: the demo needs gradio: pip install 'mmllm[demo]'"),
        (["serve"], ["uvicorn"], "mmllm: the server needs uvicorn: pip install 'mmllm[serve]'"),
        (
            ["train", "smoke", "--output", "run"],
            ["peft", "accelerate"],
            "mmllm: training needs accelerate, peft: pip install 'mmllm[train]'",
        ),
        (
            ["finetune", "own.jsonl", "--model", "default", "--output", "run"],
            ["datasets"],
            "mmllm: fine-tuning needs datasets: pip install 'mmllm[train]'",
        ),
        (["quickstart", "--output", "run"], ["peft"], "mmllm: training needs peft: pip install 'mmllm[train]'"),
        (
            ["tune-reducer", "default", "data", "--output", "run"],
            ["optuna"],
            "mmllm: a search for reducers needs optuna: pip install 'mmllm[tune]'",
        ),
        (["plot", "run"], ["matplotlib"], "mmllm: plotting needs matplotlib: pip install 'mmllm[eval]'"),
        (
            ["ask", "clip.mp4", "When?", "--plot", "answer.png"],
            ["matplotlib"],
            "mmllm: --plot needs matplotlib: pip install 'mmllm[eval]'",
        ),
    ],
)
def test_a_command_says_in_one_line_what_to_install(capsys, tmp_path, monkeypatch, without, arguments, hidden, line):
    monkeypatch.chdir(tmp_path)
    if not all(map(is_installed, [*EXTRAS["train"], *EXTRAS["demo"]])):
        pytest.skip("where others are missing, too, they are named as well")
    without(*hidden)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == line
    assert not list(tmp_path.iterdir()), "something was written before the library was missed"


def test_a_part_says_what_to_install(without):
    without("diffusers")
    message = re.escape("a VAE of diffusers needs diffusers: pip install 'mmllm[diffusers]'")
    with pytest.raises(MissingExtra, match=message):
        registry.build("autoencoder", {"name": "flextok", "latents": {"kind": "diffusers"}})


def test_a_folder_of_a_library_s_name_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "peftish").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("peftish")
    assert is_installed("torch")


def test_only_the_libraries_that_are_named_are_needed(without):
    without("accelerate")
    require_extra("eval", "a picture", "torch")
    with pytest.raises(MissingExtra, match="a run needs accelerate"):
        require_extra("eval", "a run", "accelerate")


def test_every_test_that_is_skipped_without_an_extra_exists():
    for beginnings in NEEDED.values():
        for beginning in beginnings:
            file, _, name = beginning.partition("::")
            assert (TESTS / file).exists(), file
            assert not name or f"def {name.partition('[')[0]}" in (TESTS / file).read_text(), beginning
