"""A server that runs inside the tests, and what is sent to it."""

import base64
import threading
import time
from contextlib import contextmanager

QUESTION = "When does the red circle spin?"


@contextmanager
def served(models, limits=None, **options):
    """A server that answers in this process until the block ends."""
    from mmllm.serving.limits import ServeLimits
    from mmllm.serving.models import Models
    from mmllm.serving.running import ServeOptions, ready_server

    models = Models(models, lambda qa: qa, 10**12) if isinstance(models, dict) else models
    with ready_server(models, limits or ServeLimits(), ServeOptions(port=0, **options)) as ready:
        thread = threading.Thread(target=ready.run, daemon=True)
        thread.start()
        until(lambda: ready.server.started)
        try:
            yield ready
        finally:
            ready.server.should_exit = True
            thread.join(30)


def until(condition, seconds=30.0):
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def data(path, kind="video/mp4"):
    """A file as an address."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(path, question=QUESTION, **settings):
    """Messages that ask about a video."""
    video = {"type": "video_url", "video_url": {"url": data(path)}, **settings}
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def inputs(path):
    """A question about a video for `/v1/responses`."""
    content = [{"type": "input_video", "video_url": data(path)}, {"type": "input_text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def asked(**changes):
    """A body that is right but for what is changed."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "When?"}], **changes}


def refused(answer, status, code=None, param=None):
    """Checks an answer's form, and gives its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    return error["message"]
