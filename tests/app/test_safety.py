"""The guard in front of Gradio, and the private folder."""

import asyncio
import json
import os

import pytest

from mmllm.app.limits import DemoLimits
from mmllm.app.private_folder import private_folder, remove_upload, sweep
from mmllm.app.safety import Guard
from mmllm.errors import ConfigError, InputError

LIMITS = DemoLimits(upload_mb=1, all_uploads_mb=2)


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(b"clip")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.mp4").symlink_to(tmp_path / "secret.txt")
    return folder


def request(guard, path, body=b"", method="GET", pieces=1):
    """Status and text of the answer, and the body that the app behind the guard received."""
    cut = -(-len(body) // pieces) or 1
    parts = [body[i : i + cut] for i in range(0, len(body), cut)] or [b""]
    answer, received = [], []
    waiting = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        answer.append(message)

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            received.append(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    guard.app = app
    asyncio.run(guard({"type": "http", "path": path, "method": method}, receive, send))
    return answer[0]["status"], answer[1]["body"].decode(), b"".join(received)


@pytest.fixture
def guard(uploads):
    return Guard(None, [uploads], LIMITS)


def test_files_of_the_folder_are_served(guard, uploads):
    assert request(guard, f"/gradio_api/file={uploads}/clip.mp4")[0] == 200
    assert request(guard, "/")[0] == 200
    assert request(guard, "/config")[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "{uploads}/../secret.txt",
        "{uploads}/link.mp4",
        "{uploads}",
        "{uploads}/nothing.mp4",
        "http://127.0.0.1:1/x",
        "https://example.com/x.mp4",
        "file:///etc/passwd",
        "../../../../etc/passwd",
        "{uploads}/clip.mp4\x00.txt",
        "",
    ],
)
def test_no_other_file_is_served_or_read(guard, uploads, name):
    name = name.format(uploads=uploads)
    assert request(guard, f"/gradio_api/file={name}")[0] == 403
    named = {"data": [[{"deep": {"path": name, "meta": {"_type": "gradio.FileData"}}}], "When?"]}
    status, _, received = request(guard, "/gradio_api/queue/join", json.dumps(named).encode(), "POST")
    assert (status, received) == (403, b"")


def test_messages_about_uploaded_files_pass_unchanged(guard, uploads):
    body = json.dumps({"data": [{"path": f"{uploads}/clip.mp4", "meta": {"_type": "gradio.FileData"}}]}).encode()
    assert request(guard, "/gradio_api/queue/join", body, "POST", pieces=3) == (200, "ok", body)


@pytest.mark.parametrize("body", [b"not json", b"[" * 100_000, b"\xff\xfe", b"{"])
def test_messages_that_are_no_json_are_refused_with_one_line_in_the_log(guard, caplog, body):
    assert request(guard, "/gradio_api/queue/join", body, "POST") == (400, "a message must be JSON", b"")
    assert [record.getMessage() for record in caplog.records] == ["refused POST '/queue/join': a message must be JSON"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/process_recording",
        "/gradio_api/deep_link",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit/",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
        "/gradio_api/file/etc/passwd",
        "/monitoring",
        "/monitoring/summary",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_endpoints_that_the_demo_does_not_use_are_closed(guard, path, method):
    assert request(guard, path, b"{}", method)[0] == 404


def test_long_requests_are_refused_without_reading_them_all(guard):
    status, text, received = request(guard, "/gradio_api/queue/join", b" " * (2 << 20), "POST", pieces=64)
    assert (status, received) == (413, b"")
    assert "maximum allowed size" in text
    assert request(guard, "/gradio_api/upload", b" " * 3_000_000, "POST", pieces=64)[0] == 413
    assert request(guard, "/gradio_api/upload", b" " * 900_000, "POST", pieces=64)[0] == 200


def test_uploads_are_refused_while_the_folder_is_full(guard, uploads):
    (uploads / "large.mp4").write_bytes(bytes(2_100_000))
    assert request(guard, "/gradio_api/upload", b"x", "POST")[0] == 503
    assert request(guard, "/gradio_api/info")[0] == 200


def test_old_files_are_swept(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "old.mp4").write_bytes(b"x")
    sweep(tmp_path, 3600)
    assert (tmp_path / "a" / "b" / "old.mp4").exists()
    sweep(tmp_path, -1)
    assert list(tmp_path.iterdir()) == []


def test_only_uploads_are_removed(uploads):
    secret = uploads.parent / "secret.txt"
    remove_upload(secret, uploads)
    remove_upload(uploads / ".." / "secret.txt", uploads)
    remove_upload(uploads / "nothing", uploads)
    assert secret.exists()
    remove_upload(uploads / "clip.mp4", uploads)
    assert not (uploads / "clip.mp4").exists()


def test_the_private_folder_goes_with_all_it_holds(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with private_folder(LIMITS) as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "made.json").write_text("{}")
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="waiting"):
        DemoLimits(waiting=0)
    with pytest.raises(InputError, match="from 1 to 200"):
        DemoLimits().checked_frames(float("nan"))
    assert DemoLimits().question("  When\n does  it?") == "When does it?"
