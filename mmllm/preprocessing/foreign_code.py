"""Code and patterns of others that come with a model: chat templates and tokenizers, each with a deadline.

Templates are rendered in a child process with limits of memory and output. Tokenizers run in a thread that is waited
for: their libraries let other threads go on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mmllm.errors import InputError
from mmllm.preprocessing.templates import TEMPLATES
from mmllm.video._child import Child
from mmllm.video.errors import VideoError, VideoTimeout

Result = TypeVar("Result")

WORKER = (sys.executable, "-m", "mmllm.preprocessing._template_worker")
START_S = 120.0
"""Seconds by the clock for the start of the child process, which imports transformers."""
TEMPLATE_S = 5.0
"""Seconds by the clock for one conversation."""
TEXT_BYTES = 16 << 20
"""Most bytes of a rendered conversation."""
TOKENIZER_S = 20.0
"""Seconds by the clock for one call of a tokenizer."""


class _Renderer:
    """The child process of this process; it starts with the first template and is replaced when it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._owner = 0

    def render(self, request: Mapping[str, Any]) -> str:
        """The rendered text of a request.

        Raises:
            InputError: if the template fails, takes too long or writes too much.
        """
        with self._lock:
            try:
                return self._answered(request)
            except VideoTimeout:
                self._end()
                raise InputError(
                    f"the chat template of this model was stopped, because it takes longer than {TEMPLATE_S:g} s"
                ) from None
            except VideoError:
                self._end()
                raise InputError("the chat template of this model ended the process that rendered it") from None

    def _answered(self, request: Mapping[str, Any]) -> str:
        child = self._running()
        try:
            child.send(request)
        except VideoError:  # it has ended since its last answer, for example with the thread that started it
            self._end()
            child = self._running()
            child.send(request)
        header, data = child.receive(time.monotonic() + TEMPLATE_S)
        if "error" in header:
            raise InputError(f"the chat template of this model cannot be used: {header['error']!s:.500}")
        return data.decode("utf-8", "surrogatepass")

    def _running(self) -> Child:
        if self._child is None or self._owner != os.getpid():  # a forked process needs its own
            self._child, self._owner = Child(WORKER, "the chat template"), os.getpid()
            self._child.receive(time.monotonic() + START_S)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child = None


_renderer = _Renderer()


def render_template(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """A conversation written by a chat template. One that is not ours is rendered in a child process, but on Windows.

    Args:
        template: Jinja text.
        messages: the conversation.
        variables: what the template can read beside the messages, as JSON values.

    Raises:
        InputError: if the template fails, takes too long or writes too much.
    """
    request = {"template": template, "messages": list(messages), "variables": dict(variables), "most_bytes": TEXT_BYTES}
    if template in TEMPLATES.values() or sys.platform == "win32":  # pipes cannot be waited for there
        from transformers.utils.chat_template_utils import render_jinja_template

        return str(render_jinja_template(conversations=[messages], chat_template=template, **variables)[0][0])
    try:  # the template sees that there is a video or an image, not its pixels
        plain = json.loads(json.dumps(request, default=lambda value: f"<{type(value).__name__}>"))
    except (TypeError, ValueError, RecursionError) as problem:
        raise InputError(f"messages and variables of a chat template must be JSON values: {problem}") from None
    return _renderer.render(plain)


def within_deadline(call: Callable[[], Result], seconds: float = TOKENIZER_S) -> Result:
    """The result of a call of a model's tokenizer.

    Raises:
        InputError: if it takes too long, or if its library fails inside. Errors of Python stay as they are.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except BaseException as problem:  # a PanicException of the library is no Exception
            outcome["problem"] = problem

    thread = threading.Thread(target=run, daemon=True, name="mmllm-tokenizer")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise InputError(f"the tokenizer of this model was left, because it takes longer than {seconds:g} s for a text")
    problem = outcome.get("problem")
    if isinstance(problem, (Exception, KeyboardInterrupt, SystemExit)):
        raise problem
    if problem is not None:
        raise InputError(f"the tokenizer of this model cannot read this text: {problem!s:.200}")
    return outcome["result"]
