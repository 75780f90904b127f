"""`mmllm simulate-serving`: a report for each policy, files of requests and costs, and what does not go together."""

import json

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "fifo"], "policy 'fifo'"),
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
