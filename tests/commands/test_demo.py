"""`mmllm demo` as a process: it starts without a model's name, and removes its folder when it ends."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from mmllm.commands.demo import _exit, load
from mmllm.errors import CheckpointError


def test_without_a_model_the_packaged_one_is_shown_and_says_what_it_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qa, name = load(None)
    assert name == "default"
    assert "synthetic" in qa.note


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError):
        load(str(tmp_path / "nothing"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_ends_cleanly_and_a_taken_port_is_reported(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "mmllm", "demo", "--port", str(_free_port())]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        lines = []
        while not any("answers at http" in line for line in lines):
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        url = lines[-1].split(" answers at ")[1].strip()
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(url, timeout=60).status_code == 200
        second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert second.returncode == 2
        assert "cannot listen at 127.0.0.1" in second.stderr.splitlines()[-1]
        assert len(list(tmp_path.glob("mmllm-demo-*"))) == 1
        process.terminate()  # a shell's background jobs, such as these tests may be, ignore Ctrl-C
        assert process.wait(timeout=60) == 143
        assert not list(tmp_path.glob("mmllm-demo-*"))
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()


def test_a_termination_ends_as_ctrl_c_does_with_its_own_code():
    with pytest.raises(SystemExit) as ended:
        _exit(signal.SIGTERM, None)
    assert ended.value.code == 143


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
