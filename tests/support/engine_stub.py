"""An engine at 127.0.0.1 with the interface of vLLM's completions, as far as the server uses it."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from transformers import AutoModelForCausalLM


class Engine:
    """Runs the folder that `mmllm export` wrote, and keeps what it was asked."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.asked, self.keys, self.status, self.reply, self.sent = [], [], 200, None, 0
        self.lock = threading.Lock()

    @torch.no_grad()
    def ids(self, body):
        """Ids for the embeddings of a request."""
        embeddings = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        assert embeddings.ndim == 2
        mask = torch.ones(1, len(embeddings), dtype=torch.long)
        with self.lock:
            new = self.model.generate(
                inputs_embeds=embeddings[None],
                attention_mask=mask,
                max_new_tokens=body["max_tokens"],
                suppress_tokens=[int(token) for token in body.get("logit_bias", ())] or None,
            )
        return new[0].tolist(), len(embeddings)

    def lines(self, body):
        """Server-sent events of an answer."""
        if self.reply is not None:
            yield from self.reply
            return
        ids, positions = self.ids(body)
        ends = ids[-1] in self.model.generation_config.eos_token_id
        for number, token in enumerate(ids):
            reason = None if number + 1 < len(ids) else "stop" if ends else "length"
            choice = {"index": 0, "text": "word", "token_ids": [token], "finish_reason": reason}
            yield {"object": "text_completion", "choices": [choice]}
        usage = {"prompt_tokens": positions, "prompt_tokens_details": {"cached_tokens": 3}}
        yield {"object": "text_completion", "choices": [], "usage": usage}


@contextmanager
def engine(folder):
    """The engine and its address."""
    own = Engine(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/completions"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            own.asked.append(body)
            own.keys.append(self.headers["authorization"])
            self.send_response(own.status)
            self.end_headers()
            if own.status != 200:
                self.wfile.write(b'{"error": {"message": "no such model at /srv/secret"}}')
                return
            try:
                for line in own.lines(body):
                    text = line if isinstance(line, str) else json.dumps(line)
                    self.wfile.write(f"data: {text}\n\n".encode())
                    self.wfile.flush()
                    own.sent += 1
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                pass  # the server has left

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield own, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
