"""benchmarks/ablations.py: its rows are models that can be built, its intervals are right, and it runs."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmllm.fields import merged

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "ablations.py"


@pytest.fixture(scope="module")
def ablations():
    spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["ablations"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ablations"]


def test_every_row_is_a_model_that_can_be_built(ablations):
    from mmllm.train.building import build_model

    base = ablations.settings(short=True)
    made = {row.folder: build_model(merged(base.model, row.changes))[0] for row in ablations.rows()}
    assert len(made) == len(ablations.rows())  # no two rows share a folder
    assert made["times-text"].config.time_token_ids is None
    assert len({model.config.path["mode"] for model in made.values() if "mode" in model.config.path}) >= 1


def test_the_interval_covers_the_mean_and_shrinks_with_more_clips(ablations):
    few = [{str(clip): 0.5 + 0.3 * (-1) ** clip for clip in range(6)}] * 3
    many = [{str(clip): 0.5 + 0.3 * (-1) ** clip for clip in range(200)}] * 3
    mean, low, high = ablations.interval(few)
    assert mean == pytest.approx(0.5)
    assert low < mean < high
    _, closer, farther = ablations.interval(many)
    assert farther - closer < (high - low) / 3


@pytest.mark.slow
def test_it_runs_and_goes_on_where_it_was(ablations, tmp_path, capsys):
    ablations.main(["--short", "--only", "path", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["name"] for one in results] == ["slow tokens only", "fast tokens only"]
    assert (tmp_path / "ablations.png").exists()
    assert "slow tokens only" in (tmp_path / "ablations.md").read_text()
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/model/config.json")}
    ablations.main(["--short", "--only", "path", "--output", str(tmp_path)])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/model/config.json")} == trained
