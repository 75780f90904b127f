"""`mmllm simulate-serving`: a report for each policy, files of requests and costs, and what does not go together."""

import json
import re

import pytest

from mmllm import cli
from mmllm.simulation.workload import WorkloadConfig, requests_of, write_requests


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate-serving", *map(str, arguments)])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_every_policy_is_reported(capsys):
    code, out, _ = run(capsys, "--requests", 50, "--json")
    reports = json.loads(out)
    assert (code, list(reports)) == (0, ["one", "batch", "prefill-first", "splitfuse"])
    assert all(report["requests"] == 50 for report in reports.values())
    assert "splitfuse" in run(capsys, "--requests", 50)[1]


def test_files_of_requests_and_costs(capsys, tmp_path):
    write_requests(tmp_path / "w.jsonl", requests_of(WorkloadConfig(requests=9, deadline_s=1.0)))
    (tmp_path / "c.json").write_text(json.dumps({"step_s": 2.0, "message_s": 0.01, "layers": 2}))
    arguments = [tmp_path / "w.jsonl", "--costs", tmp_path / "c.json", "--policies", "one", "--json"]
    slow = json.loads(run(capsys, *arguments)[1])["one"]
    quick = json.loads(run(capsys, *arguments, "--overlap")[1])["one"]
    assert slow["deadlines_met"] == 0
    assert quick["first_token"]["p50"] < slow["first_token"]["p50"]


def test_machines_apart(capsys):
    reports = json.loads(run(capsys, "--requests", 50, "--readers", 1, "--writers", 2, "--json")[1])
    assert [len(report["busy"]) for report in reports.values()] == [3]


def test_what_costs_nothing_takes_no_time(capsys, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"decode_s": 0, "encode_s": 0, "step_s": 0, "token_s": 0}))
    one = ["--requests", 1, "--costs", tmp_path / "c.json", "--policies", "one"]
    (reported,) = json.loads(run(capsys, *one, "--json")[1]).values()
    assert reported["requests_per_s"] is reported["slowdown"]["mean"] is reported["busy"][0] is None
    assert " - " in run(capsys, *one)[1]


def test_a_short_memory_shows_in_the_table(capsys):
    options = ["--requests", 100, "--per-s", 20, "--urgent", 0.2, "--memory", 600, "--policies", "splitfuse"]
    _, swapped, _ = run(capsys, *options)
    _, repeated, _ = run(capsys, *options, "--leaving", "recompute")
    counts = [re.search(r"left the memory\s+([\d,]+)", text) for text in (swapped, repeated)]
    assert all(count and count[1] != "0" for count in counts)
    assert re.search(r"once more\s+0\b", swapped)
    assert re.search(r"once more\s+[1-9]", repeated)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "fifo"], "policy 'fifo'"),
        (["--policies", "fifo", "--readers", "1", "--writers", "1"], "policy 'fifo'"),
        (["--policies"], "--policies needs one of one, batch"),
        (["--deadline-s", "nan"], "deadline_s = nan: must be seconds above 0"),
        (["--deadline-s", "-5"], "deadline_s = -5.0: must be seconds above 0"),
        (["--overlap"], "--overlap needs costs with message_s"),
        (["--readers", "1"], "at least 1 of each"),
        (["--memory", "10"], "and the memory has 10"),
        (["missing.jsonl"], "missing.jsonl: cannot be read"),
        (["missing.jsonl", "--seed", "3"], "leave the flags of made ones out"),
        (["--costs", "missing.json"], "missing.json: cannot be read"),
    ],
)
def test_refusals(capsys, options, message):
    code, _, err = run(capsys, *options)
    assert code == 2
    assert message in err
