"""What the demo refuses, the server refuses too: files of its machine, foreign addresses, hostile files, pages."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image
from running_server import about, asked, data, refused, served, until

CASES = Path(__file__).parents[1] / "data" / "cases"

PARTS = {
    "video_url": lambda address: {"type": "video_url", "video_url": {"url": address}},
    "image_url": lambda address: {"type": "image_url", "image_url": {"url": address}},
    "file": lambda address: {"type": "file", "file": {"file_id": address}},
}
ADDRESSES = (
    "/etc/passwd",
    "file:///etc/passwd",
    "file-../../../../etc/passwd",
    "../files/x",
    "http://127.0.0.1:1/x.mp4",
    "https://example.com/x.mp4",
    "http://[::1",
    "https://example.com:99999999/x",
    "ftp://example.com/x",
    "concat:/etc/passwd",
    "",
    "\x00",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", PARTS)
def test_no_file_of_the_machine_and_no_foreign_address_is_read(post, server, address, kind, monkeypatch):
    def connect(*_):
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr("mmllm.video._urls.public_address", connect)
    content = [PARTS[kind](address), {"type": "text", "text": "When?"}]
    message = refused(post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}])), 400)
    assert str(server.folder) not in message
    assert "root:" not in message


def test_an_unknown_file_is_not_there(post):
    content = [PARTS["file"]("file-" + "0" * 24), {"type": "text", "text": "When?"}]
    answer = post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}]))
    refused(answer, 404, "file_not_found")
    refused(post("/v1/files", {}), 400)


@pytest.mark.parametrize("kind", ["video_url", "image_url"])
@pytest.mark.parametrize("name", ["text.mp4", "cut.mp4", "list.mp4", "sound.mp4", "huge.mp4", "long.mp4"])
def test_hostile_files_are_refused_and_the_server_goes_on(post, server, bad_videos, kind, name, short_clip):
    content = [PARTS[kind](data(bad_videos[name])), {"type": "text", "text": "When?"}]
    answer = post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}]))
    message = refused(answer, 400)
    assert str(server.folder) not in message
    assert "/tmp" not in message
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_file_that_asks_for_a_gigabyte(post, server, short_clip):
    content = [
        PARTS["video_url"](data(CASES / "fault_samples_30m_in_740_bytes.mp4")),
        {"type": "text", "text": "When?"},
    ]
    refused(post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}])), 400)
    assert post("/v1/chat/completions", {"model": "tiny", "messages": about(short_clip)}).status_code == 200


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_picture_of_a_line_takes_no_memory(post, shape, tmp_path):
    Image.new("1", shape).save(tmp_path / "line.png")
    image = PARTS["image_url"](data(tmp_path / "line.png", "image/png"))
    content = [image, {"type": "text", "text": "What?"}]
    reply = post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}]))
    assert reply.status_code == 200, reply.text


def test_a_video_is_no_image_and_an_image_no_video(post, short_clip, picture):
    for kind, path in (("image_url", short_clip), ("video_url", picture)):
        content = [PARTS[kind](data(path)), {"type": "text", "text": "When?"}]
        answer = post("/v1/chat/completions", asked(messages=[{"role": "user", "content": content}]))
        refused(answer, 400, "bad_media")


def test_requests_that_are_too_long(server, limits):
    body = b'{"model": "' + b"a" * (limits.body_bytes + 10) + b'"}'
    refused(httpx.post(f"{server.url}/v1/chat/completions", content=body), 413, "too_large")

    def pieces():
        for _ in range(8):
            yield b" " * (1 << 20)

    refused(httpx.post(f"{server.url}/v1/chat/completions", content=pieces()), 413, "too_large")
    file = {"file": ("a.mp4", b"a" * 5_000_000)}
    refused(httpx.post(f"{server.url}/v1/files", files=file), 413, "too_large")

    def upload():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(8):
            yield b" " * (1 << 20)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{server.url}/v1/files", content=upload(), headers=headers)
    refused(answer, 413, "too_large")
    assert not [path for path in server.folder.iterdir() if path.is_file() and path.name != ".lock"]


def test_uploads_that_are_none(server):
    for content, kind in (
        (b"", "multipart/form-data"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"{}", "text/plain"),
    ):
        answer = httpx.post(f"{server.url}/v1/files", content=content, headers={"content-type": kind})
        refused(answer, 400, "bad_request")
    refused(httpx.post(f"{server.url}/v1/files", files={"file": ("a.mp4", b"")}), 400, "bad_media")
    refused(httpx.post(f"{server.url}/v1/files", data={"file": "text", "purpose": "x"}), 400, "bad_request")


def test_a_full_folder_refuses_uploads_but_makes_room_for_requests(untrained_qa, limits, short_clip, second_clip):
    import dataclasses

    small = dataclasses.replace(limits, all_uploads_mb=1, upload_mb=1)
    with served({"tiny": untrained_qa}, small) as ready:
        for number in range(20):
            content = short_clip.read_bytes() + bytes(100_000) + bytes([number])
            file = ready.folder / f"{number}.source"
            file.write_bytes(content)
            body = {"model": "tiny", "messages": about(file)}
            file.unlink()
            answer = httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
        assert sum(path.stat().st_size for path in (ready.folder / "files").iterdir()) <= 1_000_000
        (ready.folder / "files" / "full").write_bytes(bytes(1_100_000))
        file = {"file": ("a.mp4", b"a" * 100_000)}
        refused(httpx.post(f"{ready.url}/v1/files", files=file, timeout=60), 503, "no_room")


def raw(server, text):
    """The status line of an answer to what is sent as it stands."""
    place = httpx.URL(server.url)
    with socket.create_connection((place.host, place.port), timeout=20) as connection:
        connection.sendall(text.encode())
        return connection.recv(200).decode(errors="replace").split("\r\n")[0]


def test_names_of_the_server(server):
    port = httpx.URL(server.url).port
    assert "200" in raw(server, f"GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n")
    assert "421" in raw(server, "GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert "400" in raw(server, "GET /health HTTP/1.1\r\n\r\n")
    assert "400" in raw(server, "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    refused(httpx.get(f"{server.url}/health", headers={"host": "evil.example"}), 421, "unknown_host")
    refused(httpx.get(f"{server.url}/health", headers={"origin": "http://evil.example"}), 403, "foreign_page")
    refused(httpx.get(f"{server.url}/health", headers={"sec-fetch-site": "cross-site"}), 403, "foreign_page")


def test_a_server_with_keys(untrained_qa, limits):
    with served({"tiny": untrained_qa}, limits, keys=("first", "second")) as ready:
        for path in ("/v1/models", "/metrics", "/v1/files", "/v1/nothing"):
            refused(httpx.get(f"{ready.url}{path}"), 401, "invalid_api_key")
        for given in ("Bearer wrong", "Bearer", "Basic first", "first", "Bearer first2", "Bearer §"):
            headers = {"authorization": given.encode("latin-1")}
            refused(httpx.get(f"{ready.url}/v1/models", headers=headers), 401, "invalid_api_key")
        for key in ("first", "second"):
            assert httpx.get(f"{ready.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert httpx.get(f"{ready.url}/health").status_code == 200


AWAY = {"/away": "http://localhost/clip.mp4", "/nowhere": "http://[::1", "/high": "http://127.0.0.1:99999/clip.mp4"}
"""Paths of the server below that are somewhere else."""


@pytest.fixture
def media_server(short_clip):
    """A server of files at 127.0.0.1."""

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in AWAY:
                self.send_response(302)
                self.send_header("Location", AWAY[self.path])
                self.end_headers()
                return
            content = short_clip.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_listed_host_is_asked_and_no_other(untrained_qa, limits, media_server):
    def ask(ready, address):
        content = [PARTS["video_url"](address), {"type": "text", "text": "When?"}]
        body = asked(messages=[{"role": "user", "content": content}])
        return httpx.post(f"{ready.url}/v1/chat/completions", json=body, timeout=120)

    with served({"tiny": untrained_qa}, limits, media_hosts=("127.0.0.1",)) as ready:
        assert ask(ready, f"{media_server}/clip.mp4").status_code == 200
        for path in (*AWAY, "/cl\N{LATIN SMALL LETTER I WITH DIAERESIS}p.mp4", "/a b"):
            refused(ask(ready, f"{media_server}{path}"), 400, "bad_media")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            for port in (free.getsockname()[1], 99999, 0):
                assert "127.0.0.1" in refused(ask(ready, f"http://127.0.0.1:{port}/clip.mp4"), 400, "bad_media")
        refused(ask(ready, media_server.replace("127.0.0.1", "localhost")), 400, "address_refused")
    with served({"tiny": untrained_qa}, limits, media_hosts=("localhost",)) as ready:  # a name must be public
        refused(ask(ready, media_server.replace("127.0.0.1", "localhost")), 400, "bad_media")


def test_a_half_upload_leaves_nothing(server):
    place = httpx.URL(server.url)
    connection = socket.create_connection((place.host, place.port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {place.host}:{place.port}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1500000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="half.mp4"\r\n\r\n'
    )
    connection.sendall(head.encode() + bytes(300_000))
    connection.close()
    until(lambda: not [path for path in server.folder.iterdir() if path.is_file() and path.name != ".lock"])
    assert httpx.get(f"{server.url}/health").status_code == 200
