"""benchmarks/ablations.py: its variants are models that can be built, and it runs."""

import pytest

from benchmarks import ablations
from benchmarks.results import Results
from mmllm.fields import merged


def test_every_variant_is_a_model_that_can_be_built():
    from mmllm.train.building import build_model

    base = ablations.settings(short=True)
    made = {}
    for variant in ablations.variants():
        changes = {name: value for name, value in variant.changes.items() if value != ablations.TRAINED_HERE}
        made[variant.folder] = build_model(merged(base.model, changes))[0]
        for request in variant.requests.values():
            made[variant.folder].with_stages(**request)
    assert len(made) == len(ablations.variants())  # no two share a folder
    assert made["times-text"].config.time_token_ids is None
    assert len({model.config.path["mode"] for model in made.values() if "mode" in model.config.path}) >= 1


def test_time_that_was_not_measured_is_left_out():
    runs = [
        {"cpu_s": 10.0, "miou": {"row": {"a": 0.2, "b": 0.4}}},
        {"cpu_s": None, "miou": {"row": {"b": 0.4, "a": 0.2}}},
    ]
    numbers = ablations.numbers(runs, "row")
    assert numbers["cpu_s"] == 10
    assert numbers["miou_percent"].middle == pytest.approx(30)
    assert "cpu_s" not in ablations.numbers(runs[1:], "row")


@pytest.mark.slow
def test_it_runs_and_goes_on_where_it_was(tmp_path):
    arguments = ["--short", "--only", "path", "--output", str(tmp_path), "--json", str(tmp_path / "out.json")]
    ablations.main(arguments)
    kept = Results.read(tmp_path / "out.json")
    assert [row.labels["name"] for row in kept.tables["ablations"]] == ["slow tokens only", "fast tokens only"]
    assert Results.read(tmp_path / "results.json") == kept
    assert (tmp_path / "ablations.png").exists()
    assert "slow tokens only" in (tmp_path / "ablations.md").read_text()
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/model/config.json")}
    ablations.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/model/config.json")} == trained
    assert Results.read(tmp_path / "out.json") == kept


@pytest.mark.long
def test_one_model_is_asked_with_several_numbers_of_tokens(tmp_path):
    ablations.main(["--short", "--only", "mqt", "flextok", "--output", str(tmp_path)])
    rows = Results.read(tmp_path / "results.json").tables["ablations"]
    assert [row.labels["name"] for row in rows if row.labels["group"] == "mqt"] == [
        "elastic, 1 asked", "elastic, 4 asked", "elastic, 16 asked",
        "trained at 16, 4 asked", "trained at 16, 16 asked", "trained at 4, 4 asked",
    ]  # fmt: skip
    assert len(rows) == 9
