"""The running demo as programs use it: with gradio_client and with plain HTTP."""

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

pytestmark = pytest.mark.slow
QUESTION = "When does the red circle spin?"


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    return Client(demo.url, verbose=False, download_files=folder, httpx_kwargs={"timeout": 60})


def ask(client, video, question=QUESTION, **settings):
    return client.predict(video=handle_file(video), question=question, api_name="/ask", **settings)


def fresh_copy(video, folder, number):
    """The same video under another digest."""
    path = folder / f"{number}.mp4"
    path.write_bytes(video.read_bytes() + b"\0\0\0\x08free" * (number + 1))
    return path


def test_only_the_documented_endpoints_are_offered(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/ask", "/ask_in_chain", "/cost"}
    assert [parameter["parameter_name"] for parameter in endpoints["/ask"]["parameters"]] == [
        *("video", "question", "reducer", "share", "path", "frames")
    ]


def test_an_answer_comes_with_spans_tokens_and_seconds(client, short_clip):
    answer = ask(client, short_clip)
    assert answer["done"] is True
    assert answer["duration_s"] == pytest.approx(8.0)
    assert answer["text"] == "the red circle spins."
    assert answer["spans"] == [[pytest.approx(20 / 99 * 8.0, abs=0.01), pytest.approx(60 / 99 * 8.0, abs=0.01)]]
    assert answer["tokens"]["visual"] == 28
    assert answer["seconds"]["total"] > 0


def test_parts_of_a_video_are_looked_at_first_on_request(client, short_clip):
    answer = client.predict(video=handle_file(short_clip), question=QUESTION, chain="2", api_name="/ask_in_chain")
    assert [step["part"][0] for step in answer["steps"]] == [0.0, pytest.approx(4.4, abs=0.5)]
    assert answer["done"] is True
    with pytest.raises(AppError, match="a chain may have 8 parts at most, not 9"):
        client.predict(video=handle_file(short_clip), question=QUESTION, chain="9", api_name="/ask_in_chain")


def test_answers_stream(client, short_clip):
    job = client.submit(video=handle_file(short_clip), question=QUESTION, api_name="/ask")
    replies = list(job)
    assert len(replies) > 1
    assert [reply["done"] for reply in replies] == [False] * (len(replies) - 1) + [True]


def test_a_second_question_is_answered_from_the_stored_video(client, example, tmp_path):
    path = fresh_copy(example.path, tmp_path, 0)
    first, second = (ask(client, path, question)["seconds"] for question in list(example.truths)[:2])
    assert {"decode", "encode"} <= set(first)
    assert not {"decode", "encode", "reduce"} & set(second)
    assert set(second) >= {"prefill", "first_token"}


def test_the_documentations_program_runs(demo, short_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(short_clip.read_bytes())
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    (program,) = re.findall(r"```python\n(.+?)```", text, flags=re.DOTALL)
    assert "http://127.0.0.1:7860" in program
    exec(compile(program.replace("http://127.0.0.1:7860", demo.url), "docs/demo.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the red circle spins. [[" in printed
    assert "'cache_bytes': " in printed


def test_it_listens_at_this_machine_only_by_default(demo):
    assert demo.url.startswith("http://127.0.0.1:")
    assert demo.share_url is None
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)} - {"127.0.0.1", "::1"}
    for address in others:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as attempt, pytest.raises(OSError):
            attempt.connect((address, httpx.URL(demo.url).port))


def test_settings_have_their_cost_and_their_effect(client, short_clip):
    chosen = {"reducer": "uniform", "share": 0.5, "path": "slowfast:mode=temporal", "frames": 6}
    cost = client.predict(api_name="/cost", **chosen)
    assert cost["tokens"] == 6
    assert ask(client, short_clip, **chosen)["tokens"]["visual"] == 6
    with pytest.raises(AppError, match="inside the blocks"):
        client.predict(api_name="/cost", **{**chosen, "reducer": "diffrate:keep=4"})
    with pytest.raises(AppError, match="did you mean"):
        ask(client, short_clip, reducer="unifrm")


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "cut.mp4", "list.mp4", "sound.mp4", "long.mp4", "huge.mp4"])
def test_bad_uploads_are_refused_with_a_reason_and_leave_nothing(client, demo, bad_videos, short_clip, name):
    with pytest.raises(AppError) as refused:
        ask(client, bad_videos[name])
    assert "Traceback" not in str(refused.value)
    assert str(demo.folder) not in str(refused.value)
    assert name in str(refused.value)
    assert not list(demo.folder.rglob(name))
    assert ask(client, short_clip)["done"] is True


def test_uploads_that_are_too_large_are_refused(demo):
    for size in (2_500_000, 8_000_000):  # above the limit of one file, and above that of a request
        answer = httpx.post(demo.url + "gradio_api/upload", files={"files": ("large.mp4", bytes(size))}, timeout=60)
        assert answer.status_code == 413
    assert not [path for path in demo.folder.rglob("*") if path.is_file() and path.stat().st_size > 1_900_000]


def test_no_file_but_uploads_and_examples_can_be_read(demo, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    up = "/".join([".."] * 12)
    names = [
        str(secret),
        f"{demo.folder}/{up}{secret}",
        f"{up}{secret}",
        f"file://{secret}",
        "/etc/passwd",
        "/proc/self/environ",
    ]
    names += [Path(__file__).as_posix(), "http://127.0.0.1:22/", "//etc/passwd", "..%2f..%2fetc%2fpasswd"]
    with httpx.Client(base_url=demo.url, timeout=60) as http:
        for name in names:
            for written in (name, name.replace("/", "%2f"), name.replace("..", "%2e%2e")):
                for start in (
                    "gradio_api/file=",
                    "gradio_api/file/",
                    "gradio_api/proxy=",
                    "file=",
                    "static/",
                    "assets/",
                ):
                    answer = http.get(start + written)
                    assert answer.status_code >= 400 or "<!doctype html>" in answer.text.lower(), (start, written)
                    assert "do not tell" not in answer.text
            data = [{"path": name, "meta": {"_type": "gradio.FileData"}}, QUESTION, "none", 0.5, "as trained", 4]
            answer = http.post("gradio_api/call/ask", json={"data": data})
            assert answer.status_code == 403
            assert http.post("gradio_api/queue/join", json={"data": data, "fn_index": 0}).status_code == 403


def test_fifty_at_once_are_answered_or_refused_with_a_full_queue(demo, client, short_clip):
    def outcome(job):
        try:
            return "answered" if job.result(timeout=120)["done"] else "half answered"
        except QueueError as problem:
            return "queue full" if "full" in str(problem) else str(problem)

    jobs = [client.submit(video=handle_file(short_clip), question=QUESTION, api_name="/ask") for _ in range(50)]
    assert {outcome(job) for job in jobs} <= {"answered", "queue full"}
    before = resident_bytes()
    outcomes = all_at_once(demo.url, short_clip, 50)
    assert set(outcomes) <= {"answered", "queue full"}
    assert outcomes.count("answered") >= demo.handlers.engine.limits.waiting
    assert resident_bytes() - before < 60 << 20
    assert ask(client, short_clip)["done"] is True


def all_at_once(url, video, number):
    """The outcome of each of `number` questions that are asked at the same time over plain HTTP."""
    with httpx.Client(base_url=url, timeout=60) as http:
        with video.open("rb") as file:
            (uploaded,) = http.post("gradio_api/upload", files={"files": ("clip.mp4", file)}).json()
        data = [{"path": uploaded, "meta": {"_type": "gradio.FileData"}}, QUESTION, "none", 0.5, "as trained", 12]

        def outcome(_):
            joined = http.post("gradio_api/call/ask", json={"data": data})
            if joined.status_code == 503:
                return "queue full" if "full" in joined.text.lower() else joined.text
            with http.stream("GET", f"gradio_api/call/ask/{joined.json()['event_id']}", timeout=120) as stream:
                events = [line for line in stream.iter_lines() if line]
            done = json.loads(events[-1].removeprefix("data: "))[0]
            return "answered" if done["done"] else str(events[-2:])

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(outcome, range(number)))


def resident_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is read from /proc")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def test_nothing_generates_after_all_visitors_have_left(client):
    deadline = time.monotonic() + 10
    while any(thread.name == "mmllm-generate" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_clip_chosen_is_no_mistake(demo):
    assert demo.handlers.open_named(None, None)["status"] == demo.handlers.open_upload(None, None)["status"]
    assert "no clip" in demo.handlers.open_named("nowhere", None)["status"]
