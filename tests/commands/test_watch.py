"""`mmllm watch` as a command: lines of JSON, gaps, ends, signals, refusals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmllm.cli import main
from mmllm.synthetic.streams import StreamConfig, SyntheticStream, write_stream

STREAM = SyntheticStream(StreamConfig(seed=5))
WHITE = STREAM.questions[0]


def run(capsys, *words) -> tuple[int, list[dict], str]:
    with pytest.raises(SystemExit) as ended:
        main(["watch", *map(str, words)])
    printed = capsys.readouterr()
    return ended.value.code, [json.loads(line) for line in printed.out.splitlines()], printed.err


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "stream.ts"
    write_stream(STREAM, 40, path)
    return path


def test_an_event_is_one_line_and_the_last_line_has_the_figures(file, capsys):
    code, lines, _ = run(capsys, file, "--question", WHITE, "--idle", 0, "--max-new-tokens", 12)
    assert code == 0
    event, end = lines
    true = next(event for event in STREAM.events(38) if event.question == WHITE)
    assert event["kind"] == "event"
    assert (event["start_s"], event["end_s"]) == pytest.approx(true.span, abs=1.0)
    assert event["reported_s"] <= true.span.end_s + 2.0
    assert event["behind_s"] > 0
    assert (end["kind"], end["why"], end["events"]) == ("end", "the stream is over", 1)
    assert end["round_median_s"] > 0


def test_an_end_can_be_chosen(file, capsys):
    code, lines, _ = run(capsys, file, "--question", WHITE, "--seconds", 3)
    assert (code, lines[-1]["why"]) == (0, "--seconds are over")
    assert lines[-1]["seconds"] < 3


def child(source, *words):
    command = [sys.executable, "-m", "mmllm", "watch", str(source), "--question", WHITE, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_a_stream_that_goes_on(tmp_path, file, number, code):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with child(pipe, "--idle", "300") as process:

        def write() -> None:
            with pipe.open("wb") as target:
                target.write(file.read_bytes())
                target.flush()
                process.wait()  # the pipe stays open

        writer = threading.Thread(target=write)
        writer.start()
        event = json.loads(process.stdout.readline())
        process.send_signal(number)
        rest = process.stdout.read()
        process.wait()
        writer.join()
    assert event["kind"] == "event"
    end = json.loads(rest.splitlines()[-1])
    assert (end["kind"], end["why"]) == ("end", f"stopped by {number.name}")
    assert process.returncode == code


def test_the_standard_input_is_followed(file):
    command = [sys.executable, "-m", "mmllm", "watch", "-", "--question", WHITE, "--seconds", "5"]
    with file.open("rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["kind"] == "end"


def test_a_file_of_a_folder_that_cannot_be_read_is_a_line(tmp_path, file, capsys):
    (tmp_path / "clip1.ts").write_bytes(b"no video")
    (tmp_path / "clip2.ts").write_bytes(file.read_bytes()[:60_000])
    time.sleep(0.6)
    code, lines, _ = run(capsys, tmp_path, "--question", WHITE, "--idle", 0, "--seconds", 2)
    assert code == 0
    assert lines[0]["kind"] == "skipped"
    assert "clip1.ts" in lines[0]["reason"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{file}"], "needs questions"),
        (["{file}", "--question", " "], "none empty"),
        (["{file}", "--question", "When?", "--question", "When?"], "twice"),
        (["missing.ts", "--question", "When?"], "No such file"),
        (["rtsp://camera/live", "--question", "When?"], "--allow-address"),
        (["{file}", "--question", "When?", "--memory", "cache"], "shares of a duration"),
        (["{file}", "--question", "When?", "--rate", "0"], "rate"),
        (["{file}", "--question", "When?", "--seconds", "-1"], "--seconds"),
        (["{file}", "--question", "When?", "--idle", "-1"], "idle_s"),
        (["{file}", "--question", "When?", "--fps", "0"], "--fps"),
        (["{file}", "--question", "When?", "--settle", "5"], "settle_s"),
        (["{file}", "--question", "When?", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_wrong_input_is_refused_in_one_line(file, words, said, capsys):
    code, lines, errors = run(capsys, *(word.format(file=file) for word in words))
    assert code == 2
    assert not lines
    assert said in errors
    assert errors.count("mmllm: ") == 1
