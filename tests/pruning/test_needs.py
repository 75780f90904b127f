"""What is said of reducers: where they act, what they need, whether they read the question, what they reproduce."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmllm import registry
from mmllm.commands.listing import list_parts
from mmllm.interfaces import TokenReducer
from mmllm.pruning.needs import reducers_for
from mmllm.registry import register

ROOT = Path(__file__).resolve().parents[2]
REDUCERS = {
    name: part.cls for name, part in registry.parts("reducer").items() if part.cls.__module__.startswith("mmllm.")
}


@pytest.mark.parametrize(
    ("name", "where", "needs", "aware"),
    [
        ("divprune", "behind the projector", "", "no"),
        (
            "cdpruner",
            "behind the projector",
            "CLIP's text tower, or relevance=none",
            "relevance=clip or relevance=words",
        ),
        ("fastervlm", "behind the encoder", "cls_attention or mean_attention or probe_attention", "no"),
        ("sparsevlm", "inside the LLM", "attention of the question's words in the layers it names", "yes"),
        ("diffrate", "inside the encoder", "blocks of a transformer with a class token", "no"),
    ],
)
def test_list_says_it(capsys, name, where, needs, aware):
    list_parts("reducers", json=True)
    row = next(row for row in json.loads(capsys.readouterr().out)["reducers"] if row["name"] == name)
    assert (row["where"], row["needs"], row["question-aware"]) == (where, needs, aware)
    assert row["count by shape"] == ("yes" if name in ("divprune", "cdpruner", "fastervlm") else "no")


def test_list_says_what_is_trained_and_what_it_is_exact_to(capsys):
    list_parts("reducers", json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["reducers"]}
    assert {name for name, row in rows.items() if row["training"] != "training-free"} == {"atp", "diffrate"}
    assert rows["visionzip"]["original"] == "dvlab-research/VisionZip 3151f6d, arXiv 2412.04467"
    assert rows["visionzip"]["checked against"].startswith("outputs of its code: ")
    assert rows["uniform"]["original"] == "ours"


@pytest.mark.parametrize("name", REDUCERS)
def test_every_reducer_says_what_it_reproduces(name):
    reducer = REDUCERS[name]
    assert reducer.origin is not None, f"{name} has no `origin`: what it reproduces, and how that was checked"
    assert reducer.origin.original
    assert reducer.origin.equal
    assert (reducer.origin.compared_with == "properties") == (
        reducer.origin.original.startswith("ours") or name == "atp"
    )


@pytest.mark.parametrize("name", [name for name in REDUCERS if REDUCERS[name].origin])
def test_what_is_said_of_an_origin_is_so(name):
    """Recorded outputs are read by the reducer's own test; papers are those of its file and of the table of systems."""
    file, origin = Path(*REDUCERS[name].__module__.split(".")[1:]), REDUCERS[name].origin
    test = (ROOT / "tests" / file.with_name(f"test_{file.name}.py")).read_text()
    assert (origin.compared_with == "outputs of its code") == (".safetensors" in test)
    systems = (ROOT / "docs" / "systems.md").read_text()
    row = "".join(line for line in systems.splitlines() if f"`mmllm/{file}.py`" in line)
    for paper in re.findall(r"\d{4}\.\d{5}", origin.original):
        assert paper in row


def test_a_reducer_of_another_package_need_not_say_it(capsys):
    @dataclass(frozen=True, kw_only=True)
    class SilentConfig:
        pass

    @register("reducer", "silent", config=SilentConfig)
    class Silent(TokenReducer):
        """Keeps all."""

    try:
        list_parts("reducers")
        block = capsys.readouterr().out.partition("  silent\n")[2].partition("  sparsevlm\n")[0]
        assert "Keeps all." in block
        assert "original" not in block
    finally:
        registry._parts["reducer"].pop("silent")


def test_nothing_is_cut_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    list_parts("reducers")
    printed = " ".join(capsys.readouterr().out.split())
    for name, reducer in REDUCERS.items():
        assert f" {name} {' '.join(reducer.__doc__.split())} where: " in f" {printed}"
        assert f"original: {reducer.origin.original} checked against: {reducer.origin.compared_with}: " in printed


def test_advice_names_a_setting_that_needs_nothing():
    names = reducers_for({"mean_attention"}, "grid")
    assert "cdpruner:relevance=none" in names
    assert "cdpruner" not in names
    for name in names:
        if registry.find("reducer", name.partition(":")[0]).cls.plain_choice:
            built = registry.build("reducer", f"{name},keep=2")
            assert not built.reads_question
            assert not built.needs_text_tower
