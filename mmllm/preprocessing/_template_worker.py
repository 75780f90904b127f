"""The program of the child process that renders chat templates: `python -m mmllm.preprocessing._template_worker`.

A template is a program of whoever published the model. It runs here with limits of memory and of its output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

from mmllm.runtime.processes import end_with_parent, limit_memory

MEMORY_BYTES = 512 << 20
"""What a template may use beside the libraries."""


def main() -> None:
    """Answers requests from standard input until it ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints goes to the error output, so the pipe carries answers only
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_memory(MEMORY_BYTES)
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            text = render_jinja_template(
                conversations=[request["messages"]], chat_template=request["template"], **request["variables"]
            )[0][0]
            data = text.encode("utf-8", "surrogatepass")
            if len(data) > request["most_bytes"]:
                _answer(answers, {"error": f"it writes more than {request['most_bytes']} bytes"})
            else:
                _answer(answers, {}, data)
        except MemoryError:
            _answer(answers, {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"})
        except Exception as problem:  # a template is a program and may raise anything
            _answer(answers, {"error": f"{type(problem).__name__}: {problem}"[:500]})


def _answer(answers: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    answers.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n" + data)
    answers.flush()


if __name__ == "__main__":
    main()
