"""Room for uploads: reserved before a byte comes, given back by visitors who leave, never blocked by those who wait."""

import asyncio
import json
import os
import shutil
import socket
import time
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

from mmllm.app import uploads
from mmllm.app.limits import DemoLimits
from mmllm.app.private_folder import private_folder, remove_dead_folders, sweep
from mmllm.app.uploads import Room, announced_length

LIMITS = DemoLimits(upload_mb=1, all_uploads_mb=2)


def test_lengths_are_reserved_and_given_back(tmp_path):
    async def story():
        room = Room(tmp_path, 1000)
        first = await room.reserved(600)
        assert await room.reserved(600) is None
        first.received = 500
        (tmp_path / "part").write_bytes(bytes(500))
        second = await room.reserved(400)
        assert second is not None
        room.release(first)
        (tmp_path / "part").unlink()
        assert await room.reserved(600) is not None

    asyncio.run(story())


def test_ten_silent_uploads_give_way(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_ABANDONED_S", 0.1)

    async def story():
        room = Room(tmp_path, 1000)
        silent = [await room.reserved(100) for _ in range(10)]
        busy = silent.pop()
        busy.received = 10_000_000

        async def leave(upload):
            await upload.given_up.wait()
            room.release(upload)

        leaving = [asyncio.create_task(leave(upload)) for upload in silent]
        started_s = time.monotonic()
        assert await room.reserved(500) is not None
        assert time.monotonic() - started_s < 5
        assert not busy.given_up.is_set()
        for task in leaving:
            task.cancel()

    asyncio.run(story())


def test_a_full_folder_refuses_at_once(tmp_path):
    (tmp_path / "full").write_bytes(bytes(900))
    started_s = time.monotonic()
    assert asyncio.run(Room(tmp_path, 1000).reserved(200)) is None
    assert time.monotonic() - started_s < 1


@pytest.mark.parametrize(("text", "length"), [("12", 12), ("", 7), ("-1", 7), ("²", 7), ("1e3", 7), ("9" * 30, 7)])
def test_announced_lengths(text, length):
    assert announced_length({"content-length": text}, 7) == length


def test_folders_of_dead_demos_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("mmllm-demo-a", "mmllm-demo-b", "mmllm-demo-c", "mmllm-demo-d", "else")
    dead, living, old, new, other = (tmp_path / name for name in names)
    for folder in (dead, living, old, new, other):
        folder.mkdir()
        (folder / "clip.mp4").write_bytes(b"x")
    (dead / ".lock").touch()
    os.utime(old, (0, 0))
    (tmp_path / "mmllm-demo-link").symlink_to(other)
    with FileLock(living / ".lock"):
        remove_dead_folders()
    assert {path.name for path in tmp_path.iterdir()} == {"mmllm-demo-b", "mmllm-demo-d", "mmllm-demo-link", "else"}
    with private_folder(LIMITS) as folder:
        remove_dead_folders()
        sweep(folder, -1)
        assert (folder / ".lock").exists()


def test_half_files_are_swept_when_nothing_is_written(tmp_path):
    (tmp_path / "hash").mkdir()
    for name in ("tmpabc", "tmpnew", "hash/clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, None if name == "tmpnew" else (0, 0))
    sweep(tmp_path, 3600)
    assert {path.name for path in tmp_path.rglob("*")} == {"tmpnew", "hash", "clip.mp4"}


def begun_upload(url, announced, sent):
    """A connection that has announced an upload and sent a part of it."""
    place = httpx.URL(url)
    connection = socket.create_connection((place.host, place.port))
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\n"
        f"Host: {place.host}:{place.port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {announced}\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="files"; filename="half.mp4"\r\n\r\n'
    )
    connection.sendall(head.encode() + bytes(sent))
    return connection


def files(folder: Path):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_half_upload_is_removed_when_its_visitor_leaves(demo):
    before = len(files(demo.folder))
    connection = begun_upload(demo.url, 1_500_000, 300_000)
    until(lambda: len(files(demo.folder)) == before + 1)
    connection.close()
    until(lambda: len(files(demo.folder)) == before)


@pytest.mark.slow
def test_abandoned_uploads_lock_nobody_out(demo, demo_limits):
    count = demo_limits.all_uploads_mb // demo_limits.upload_mb
    connections = [begun_upload(demo.url, 1_900_000, 100) for _ in range(count)]
    time.sleep(1.5)
    answer = httpx.post(demo.url + "gradio_api/upload", files={"files": ("a.mp4", bytes(1_500_000))}, timeout=60)
    assert answer.status_code == 200, answer.text
    shutil.rmtree(Path(json.loads(answer.text)[0]).parent)
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_an_announced_length_above_the_limit_is_refused_before_a_byte_is_sent(demo):
    connection = begun_upload(demo.url, 10**12, 0)
    connection.settimeout(20)
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
    connection.close()
