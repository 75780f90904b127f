"""Commands on a disk that is full or a folder that cannot be written to: one line, and the next run goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mmllm import cli
from mmllm.commands.evaluate import evaluate_into
from mmllm.datasets.records import Question
from mmllm.errors import InputError, MmllmError
from mmllm.evaluation.run import Benchmark
from mmllm.runtime import files
from mmllm.times.answers import Span


@pytest.fixture
def benchmark(short_clip):
    asked = Question(
        question_id="1", vid="a", question="When does it spin?", answer="<1> <2> it spins.", duration_s=8.0,
        family="direct", video=short_clip, spans=(Span(1.0, 2.0),),
    )  # fmt: skip
    return Benchmark(questions=[asked], fit=[])


def space_for(monkeypatch, writes):
    """The disk is full after some more files."""
    left, flush = [writes], os.fsync

    def fail(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", fail)


def test_an_evaluation_goes_on_wherever_the_disk_was_full(tmp_path, untrained_qa, benchmark, monkeypatch):
    expected = evaluate_into(tmp_path / "whole", untrained_qa, benchmark, shuffle=False)
    refusals = []
    for writes in range(0, 12, 2):
        folder = tmp_path / str(writes)
        with monkeypatch.context() as patch:
            space_for(patch, writes)
            try:
                evaluate_into(folder, untrained_qa, benchmark, shuffle=False)
            except MmllmError as problem:
                refusals.append(str(problem).endswith(f"in {folder}: No space left on device"))
        for file in folder.glob("*.json"):
            json.loads(file.read_text())
        assert evaluate_into(folder, untrained_qa, benchmark, shuffle=False) == expected
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(refusals) >= 3
    assert all(refusals)


def test_an_empty_record_of_an_older_version_is_no_obstacle(tmp_path, untrained_qa, benchmark):
    (tmp_path / "answered_by.json").write_text("")
    evaluate_into(tmp_path, untrained_qa, benchmark, shuffle=False)
    (tmp_path / "answered_by.json").write_text("")  # beside answers it may belong to another model
    with pytest.raises(InputError, match=r"answered_by.json: this file is damaged.*--output"):
        evaluate_into(tmp_path, untrained_qa, benchmark, shuffle=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "{place}", "--videos", "1", "--val-videos", "0"],
        ["train", "smoke", "--output", "{place}"],
        ["plot", "{tmp}", "--output", "{place}"],
    ],
)
@pytest.mark.parametrize("place", ["{tmp}/file/x", "/proc/mmllm"])
def test_a_folder_that_cannot_be_made_is_named_in_one_line(capsys, tmp_path, arguments, place):
    if place.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("there is no /proc")
    (tmp_path / "file").write_text("")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    place = place.format(tmp=tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main([argument.format(place=place, tmp=tmp_path) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"mmllm: cannot make the folder {place}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["list", "paths"], ["--version"]])
def test_an_output_on_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmllm", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "mmllm: the output: No space left on device\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
def test_sigterm_ends_a_command_like_ctrl_c_with_one_line(tmp_path):
    command = [sys.executable, "-m", "mmllm", "render", str(tmp_path / "set"), "--videos", "3000", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("set/videos/v_*.mp4")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.splitlines()[-1] == "mmllm: terminated"
    assert "Traceback" not in told
