"""`mmllm serve` as a process: its answers, its end, and what a killed one leaves to the next."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from mmllm.commands.serve import named
from mmllm.commands.serve_flags import KEY, api_keys
from mmllm.errors import CheckpointError, InputError


def test_models_have_names(tmp_path):
    assert named(("default",)) == {"default": "default"}
    assert named(("default", "small=default")) == {"default": "default", "small": "default"}
    with pytest.raises(InputError, match="two models"):
        named(("default", "default=default"))
    with pytest.raises(InputError, match="the name is missing"):
        named(("=default",))
    with pytest.raises(CheckpointError):
        named((str(tmp_path / "nothing"),))


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    assert api_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text("first\n\n second \nfirst\n")
    monkeypatch.setenv(KEY, "third, ,fourth")
    assert api_keys(file) == ("third", "fourth", "first", "second")
    file.write_text("\n")
    with pytest.raises(InputError, match="no key"):
        api_keys(file)
    file.write_text("# of the office\n\n  third  \n   # of nobody\nsec#ond\n")
    assert api_keys(file) == ("third", "fourth", "sec#ond")
    file.write_text("# none\n")
    with pytest.raises(InputError, match="no key is in it"):
        api_keys(file)
    with pytest.raises(InputError, match="key-file"):
        api_keys(tmp_path / "nothing")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="key-file"):
        api_keys(file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["nowhere"], "nowhere"),
        (["--rows", "0"], "--rows"),
        (["--decoders", "-1"], "--decoders"),
        (["--drain-s", "nan"], "--drain-s"),
        (["--window-ms", "-1"], "--window-ms"),
        (["--upload-mb", "0"], "upload_mb"),
        (["--port", "99999"], "cannot listen"),
        (["--engine", "vllm"], "--engine"),
        (["--engine", "http://127.0.0.1:1/v1", "--batching", "continuous"], "--batching"),
        (["--batching", "continuous", "--step-tokens", "0"], "--step-tokens"),
        (["--cache-positions", "99"], "--cache-positions"),
        (["--engine", "ftp://127.0.0.1/v1"], "--engine"),
        (["--engine", "http://127.0.0.1:99999/v1"], "--engine"),
        (["--host", "no.such.host.invalid", "--no-auth"], "cannot listen"),
    ],
)
def test_wrong_flags_are_one_line(capsys, arguments, words, monkeypatch):
    from mmllm.cli import main

    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    assert end.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("mmllm: ")
    assert words in line


class Process:
    """`mmllm serve` in a folder for temporary files of its own."""

    def __init__(self, folder, *flags, **environment):
        everything = {**os.environ, "TMPDIR": str(folder), **environment}
        command = [sys.executable, "-m", "mmllm", "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        while not any(" at http" in line for line in lines):
            line = self.process.stdout.readline()
            assert line, lines
            lines.append(line)
        self.url = lines[-1].split(" at ")[1].strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_server_leaves_nothing_to_the_next_which_ends_cleanly(tmp_path, short_clip):
    with Process(tmp_path) as first:
        file = {"file": ("clip.mp4", short_clip.read_bytes())}
        assert httpx.post(f"{first.url}/files", files=file, timeout=60).status_code == 200
        (folder,) = tmp_path.glob("mmllm-serve-*")
        assert list((folder / "files").iterdir())
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert folder.exists()
    with Process(tmp_path, **{KEY: "secret"}) as second:
        (other,) = tmp_path.glob("mmllm-serve-*")
        assert other != folder
        assert httpx.get(f"{second.url}/models", timeout=60).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.get(f"{second.url}/models", headers=headers, timeout=60).json()["data"][0]["id"] == "default"
        began_s = time.monotonic()
        second.process.terminate()
        assert second.process.wait(timeout=60) == 0
        assert time.monotonic() - began_s < 20
        assert "Traceback" not in second.process.stdout.read()
    assert not list(tmp_path.glob("mmllm-serve-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_a_running_answer_ends_before_the_server_does(tmp_path, short_clip, batching):
    from running_server import about

    with Process(tmp_path, "--drain-s", "20", "--batching", batching) as server:
        body = {"model": "default", "messages": about(short_clip), "stream": True}
        with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=120) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.terminate()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason": "stop"' in rest[-2]
        assert server.process.wait(timeout=60) == 0
        assert "terminate called" not in server.process.stdout.read()


@pytest.mark.parametrize("key", ["k\N{LATIN SMALL LETTER A WITH DIAERESIS}y", "k\x00y", "\N{CYRILLIC SMALL LETTER A}"])
def test_a_key_that_headers_cannot_hold_is_refused_and_not_told(tmp_path, monkeypatch, key):
    monkeypatch.delenv(KEY, raising=False)
    file = tmp_path / "keys"
    file.write_text(f"# of the office\nfirst\n{key}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"--key-file .*: line 3 has characters that are not ASCII's") as problem:
        api_keys(file)
    assert key not in str(problem.value)
    if "\x00" not in key:
        monkeypatch.setenv(KEY, f"first,{key}")
        with pytest.raises(InputError, match=f"{KEY}: key 2 has"):
            api_keys(None)
