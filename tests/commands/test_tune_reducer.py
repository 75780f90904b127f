"""`mmllm tune-reducer` with whole models: ours, published, hosted; killed and going on; and what it refuses."""

import json
import multiprocessing
import os
import signal
import time

import pytest
from own_clips import TINY  # noqa: F401 - its lock of tqdm outlives killed processes

from mmllm import cli
from mmllm.evaluation.run import read_benchmark
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.tuning.config import TuneConfig
from mmllm.tuning.run import tune


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six rendered clips with questions about time, and one row whose video is missing in a second file."""
    root = tmp_path_factory.mktemp("rendered")
    config = SyntheticConfig(train_videos=0, val_videos=6, min_duration_s=8, max_duration_s=10, families=("visible",))
    render(root, config, workers=1, progress=False)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory, untrained_qa):
    folder = tmp_path_factory.mktemp("model")
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(folder)
    return folder


SMALL = ["--first-clips", "2", "--max-new-tokens", "4"]


def run(capsys, *arguments):
    code = 0
    try:
        cli.main(["tune-reducer", *map(str, arguments)])
    except SystemExit as ended:
        code = ended.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_search_prints_a_flag_that_asks_the_same(data, model, capsys, tmp_path):
    given = [model, data, *SMALL, "--output", tmp_path / "out", "--target-miou", "0.5"]
    code, out, err = run(capsys, *given, "--reducers", "uniform", "pool", "prefix", "fastv", "--budgets", "0.5", "0.25")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cheapest = results["cheapest"]
    assert f"--reducer {cheapest['flag']}\n" in out
    assert cheapest["share"] >= 0.5
    assert (cheapest["clips"], results["unreduced"]["clips"]) == (6, 6)
    measured = [row for row in results["settings"] if row["end"] == "measured" and row["share"] >= 0.5]
    assert cheapest["cost"] == min(row["cost"] for row in measured) < 1
    assert set(results["refused"]) == {"pool at 0.5", "prefix at 0.5", "prefix at 0.25"}
    assert (tmp_path / "out" / "plot.png").stat().st_size > 5000
    assert "rung 1 of 3: 5 settings" in err
    # the table and the JSON again, without any work
    code, out, err = run(capsys, *given, "--reducers", "uniform", "pool", "prefix", "fastv", "--budgets", "0.5", "0.25",
                         "--json")  # fmt: skip
    assert (code, json.loads(out)) == (0, results)
    assert "rung" not in err
    # what it says is what an evaluation says of the same clips
    asked = ["--reducer", cheapest["flag"], "--json", "--max-new-tokens", "4", "--no-shuffle"]
    with pytest.raises(SystemExit):
        cli.main(["eval", str(model), str(data), "--output", str(tmp_path / "eval"), *asked])
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(cheapest["miou"])
    # other settings, other annotations
    assert run(capsys, *given, "--reducers", "uniform")[0] == 2
    code, _, err = run(capsys, *given, "--reducers", "uniform", "pool", "prefix", "fastv", "--budgets", "0.5", "0.25",
                       "--limit", 5)  # fmt: skip
    assert code == 2
    assert "choose another --output" in err


def lines(folder):
    file = folder / "trials.jsonl"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the search is killed in a forked process")
def test_a_search_that_is_killed_goes_on(data, untrained_qa, tmp_path):
    benchmark = read_benchmark(data)
    config = TuneConfig(
        target_miou=0.9,
        reducers=("uniform", "dart"),
        budgets=(0.5, 0.25),
        first_clips=2,
        max_new_tokens=4,
    )
    whole = tune(tmp_path / "whole", untrained_qa, benchmark, config)
    assert untrained_qa.max_new_tokens == 12, "the caller's model is as it was"
    killed = tmp_path / "killed"
    for wanted in (3, 12):
        process = multiprocessing.get_context("fork").Process(
            target=tune, args=(killed, untrained_qa, benchmark, config)
        )
        process.start()
        while process.is_alive() and len(lines(killed)) < wanted:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (killed / "results.json").exists(), "it was over before it was killed"
    assert tune(killed, untrained_qa, benchmark, config) == whole
    assert json.loads((killed / "results.json").read_text()) == whole
    assert sorted(lines(killed)) == sorted(lines(tmp_path / "whole")), "each trial of a clip once"


def test_a_hosted_model(data, capsys, tmp_path):
    from tiny_models import CASES
    from tiny_processors import processor

    CASES["qwen3_vl"].fresh().save_pretrained(tmp_path / "model")
    processor("qwen3_vl").save_pretrained(tmp_path / "model")
    code, out, err = run(
        capsys, tmp_path / "model", data, *SMALL, "--limit", 2, "--target-miou", "0.1", "--budgets", "0.5",
        "--output", tmp_path / "out", "--times", "transformers", "--json",
    )  # fmt: skip
    assert code == 0, err
    results = json.loads(out)
    costs = {row["reducer"]: row["cost"] for row in results["settings"]}
    assert len(costs) > 5
    assert costs["evs"] < 1
    assert costs["fastv"] < 1
    assert "a hosted model runs its own tower" in results["refused"]["diffrate at 0.5"]


def test_nothing_is_within_an_impossible_target(data, model, capsys, tmp_path):
    code, out, _ = run(
        capsys, model, data, *SMALL, "--limit", 2, "--reducers", "dart", "--budgets", "0.05", "--target-miou", "1.0",
        "--output", tmp_path / "out",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert code == 0
    if results["cheapest"] is None:  # a model that was not trained may answer alike
        assert "nothing within the target" in out
        assert "--reducer dart:layer=1,ratio=0.05" in out


def test_clips_that_cannot_be_read_are_left_out_and_told(data, model, capsys, tmp_path):
    rows = json.loads((data / "val.json").read_text())
    vids = sorted({row["vid"] for row in rows})
    (tmp_path / "videos").mkdir()
    for number, vid in enumerate(vids[:4]):
        target = tmp_path / "videos" / f"v_{vid}.mp4"
        (file,) = (data / "videos").glob(f"*{vid}*")
        target.write_bytes(b"nothing" if number == 0 else file.read_bytes())
    (tmp_path / "val.json").write_text(json.dumps([row for row in rows if row["vid"] in vids[:5]]))
    given = [*SMALL, "--reducers", "uniform", "--budgets", "0.5", "--json"]
    code, out, err = run(capsys, model, tmp_path, *given, "--output", tmp_path / "out")
    assert code == 3, err
    results = json.loads(out)
    assert list(results["unreadable"]) == vids[:1]
    assert results["unreduced"]["clips"] == 3
    assert any("is missing" in row for row in results["left_out"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-miou", "95"], "target_miou = 95.0: must be a share of the unreduced mIoU, above 0 and at most 1"),
        (["--budgets", "50"], "budgets = (50.0,): must be shares of the tokens above 0 and below 1"),
        (["--reducers", "unifrom"], "unknown reducer 'unifrom'; did you mean 'uniform'"),
        (["--reducers", "fastv:depth=3"], "none of these reducers fits the model"),
        (["--reducers", "prefix"], "ordered 1D tokens"),
        (["--first-clips", "1"], "first_clips = 1: must be at least 2"),
        (["--halving", "1"], "halving = 1: must be at least 2"),
        (["--limit", "0"], "--limit 0: must be from 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: must be from 1"),
        (["--seed", "-1"], "seed = -1"),
        (["--fps", "0"], "--fps 0: must be a positive number"),
        (["--times", "own"], "times is a setting of hosted models"),
    ],
)
def test_bad_flags_are_one_line(flags, message, data, model, capsys, tmp_path):
    code, _, err = run(capsys, model, data, "--output", tmp_path / "out", *flags)
    assert code == 2
    assert message in err.strip().splitlines()[-1]  # above it transformers may say that it loads weights
    assert not (tmp_path / "out").exists()


def test_data_without_intervals_is_refused(model, short_clip, capsys, tmp_path):
    rows = [{"video": str(short_clip), "question": "What is it?", "answer": "A circle.", "duration": 8}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = run(capsys, model, tmp_path / "own.jsonl", "--output", tmp_path / "out")
    assert code == 2
    assert "no question with a true interval" in err


def test_a_second_search_in_the_same_folder_waits_for_nobody(data, model, capsys, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        code, _, err = run(capsys, model, data, *SMALL, "--reducers", "uniform", "--output", tmp_path / "out")
    assert code == 1
    assert "another process is tuning in" in err
