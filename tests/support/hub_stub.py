"""A hub on this machine: takes new models and commits as the Hugging Face hub does, and remembers them."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStub:
    """Repositories -> name of a file -> its bytes; and the calls in order."""

    def __init__(self, *, refuses: bool = False):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.tokens: set[str] = set()  # of calls that write
        self.refuses = refuses
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        if self.refuses:
            return 403, {"error": "you may not write here"}
        words = path.partition("?")[0].strip("/").split("/")
        if path.startswith("/api/repos/create"):
            wanted = json.loads(body)
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.created.append(wanted)
            self.repositories.setdefault(name, {})
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        if path.startswith("/api/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if words[:2] == ["api", "models"] and "preupload" in words:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if words[:2] == ["api", "models"] and "commit" in words:
            name = "/".join(words[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        if words[:2] == ["api", "models"] and len(words) >= 4:
            return 200, {"id": "/".join(words[2:4]), "sha": "1" * 40, "siblings": []}
        name, file = "/".join(words[:2]), words[-1]
        content = self.repositories.get(name, {}).get(file)
        return (404, {"error": f"no {method} {path}"}) if content is None else (200, {})


@contextmanager
def running(stub: HubStub):
    """The address of a stub that answers as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            size = self.headers.get("Content-Length")
            body = self.rfile.read(int(size)) if size else _chunks(self.rfile, self.headers)
            if self.command == "POST" and "validate-yaml" not in self.path:
                stub.tokens.add(self.headers.get("Authorization", ""))
            code, content = stub.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            if code == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = do_PUT = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stub.address
    finally:
        server.shutdown()
        server.server_close()


def _chunks(stream, headers) -> bytes:
    """A body that comes in chunks."""
    if headers.get("Transfer-Encoding") != "chunked":
        return b""
    body = b""
    while size := int(stream.readline().strip() or b"0", 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body
