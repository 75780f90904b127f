"""benchmarks/results.py: what is written is read again, and nothing else is read."""

import json

import pytest

from benchmarks.intervals import Interval
from benchmarks.results import Results, Row, command_line, machine
from mmllm.errors import InputError


def results() -> Results:
    made = Results("python benchmarks/video.py --rounds 7", {"cores": 2}, note="busy")
    made.add(
        "clips", {"clip": "a.mp4"}, {"frames": 18_087_936, "mmllm_s": Interval(0.5, 0.25, 0.75, (0.25, 0.5, 0.75))}
    )
    made.add("clips", {"clip": "b.mp4"}, {"frames": 9, "ratio": Interval(2.0, 1.5, 2.5)})
    made.tables["other"] = [Row({}, {"share": 0.125}, "python benchmarks/train.py --untied")]
    return made


def test_what_is_written_is_read_again(tmp_path):
    results().save(tmp_path / "new" / "out.json")
    assert Results.read(tmp_path / "new" / "out.json") == results()


def test_the_file_has_the_shape_that_the_module_describes(tmp_path):
    results().save(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == ["command", "machine", "note", "tables"]
    row = {"labels": {"clip": "b.mp4"}, "numbers": {"frames": 9, "ratio": {"middle": 2.0, "low": 1.5, "high": 2.5}}}
    assert written["tables"]["clips"][1] == row
    assert written["tables"]["other"][0]["command"] == "python benchmarks/train.py --untied"


def test_numbers_have_six_digits_and_must_be_numbers(tmp_path):
    made = Results("python x.py", {})
    made.add("t", {}, {"share": 1 / 3, "count": 123_456_789})
    made.save(tmp_path / "out.json")
    assert Results.read(tmp_path / "out.json").tables["t"][0].numbers == {"share": 0.333333, "count": 123_456_789}
    made.add("t", {}, {"share": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.save(tmp_path / "out.json")


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results().save(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "holds no results"),
        ("{", "holds no results"),
        ('{"command": "c", "machine": {}}', "needed"),
        ('{"command": "c", "machine": {}, "tables": {}, "date": "today"}', "date"),
        ('{"command": "c", "machine": {}, "tables": {"t": [{"labels": {}}]}}', "numbers"),
        ('{"command": "c", "machine": {}, "tables": {"t": [{"labels": {}, "numbers": {"x": "1"}}]}}', "no number"),
        ('{"command": "c", "machine": {}, "tables": {"t": [{"labels": {}, "numbers": {"x": {"low": 1}}}]}}', "middle"),
    ],
)
def test_anything_else_is_refused(tmp_path, text, reason):
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        Results.read(tmp_path / "out.json")
    with pytest.raises(InputError, match=r"missing\.json"):
        Results.read(tmp_path / "missing.json")


def test_a_name_stands_for_a_label_or_a_number():
    with pytest.raises(InputError, match="score"):
        Row({"score": "-"}, {"score": 1.0})


def test_the_machine_and_the_command_line():
    described = machine("psutil", threads=1)
    assert described["cores"] >= 1
    assert described["threads"] == 1
    assert {"processor", "python", "psutil"} <= described.keys()
    assert command_line("/some/where/video.py", ["--only", "a b"]) == "python benchmarks/video.py --only 'a b'"
