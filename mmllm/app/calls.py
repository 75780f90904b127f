"""The calls that the page and programs make: what does not fit an endpoint is refused before Gradio sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_BY_NAME = ("/call/", "/run/", "/api/")
_JOIN = "/queue/join"
_NUMBERED = ("/run/predict", "/api/predict")
"""Where the page sends events that need no queue."""
_NO_TEXT = "must be a text"


@dataclass
class Calls:
    """The inputs of each endpoint: kinds of the page's parts, such as `slider`, in order."""

    by_name: Mapping[str, Sequence[str]] = field(default_factory=dict)
    by_number: Mapping[int, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, blocks: Any) -> Calls:
        """The endpoints of a Gradio page."""
        kinds = {number: [part.get_block_name() for part in event.inputs] for number, event in blocks.fns.items()}
        names = {event.api_name: kinds[number] for number, event in blocks.fns.items() if event.api_name}
        return cls(by_name=names, by_number=kinds)

    def malformed(self, path: str, message: Any) -> str | None:
        """Why a message cannot be used; None if it can, or if Gradio itself checks it.

        Args:
            path: without `/gradio_api`.
            message: the JSON value of the body.
        """
        if not isinstance(message, dict):
            return "a message must be a JSON object"
        path = path.rstrip("/")
        if path == _JOIN or (path in _NUMBERED and "fn_index" in message):
            return self._malformed_event(message)
        start = next((start for start in _BY_NAME if path.startswith(start)), None)
        if start is None:
            return None
        name = path.removeprefix(start).removeprefix("v2/")
        if name not in self.by_name:
            return f"there is no endpoint {name[:60]!r}"
        return _wrong_data(message.get("data"), self.by_name[name])

    def _malformed_event(self, message: Mapping[str, Any]) -> str | None:
        """The same for a message of the page, which names an event by its number."""
        number = message.get("fn_index")
        if isinstance(number, bool) or not isinstance(number, int) or number not in self.by_number:
            return f"fn_index {number!r:.40} names no endpoint"
        if not isinstance(message.get("session_hash"), str):
            return f"session_hash {_NO_TEXT}"
        data, inputs = message.get("data"), self.by_number[number]
        if not isinstance(data, list) or len(data) != len(inputs):
            return f"data must be a list of {len(inputs)} values"
        return None  # the page itself sends values of forms that programs do not use


def _wrong_data(data: Any, kinds: Sequence[str]) -> str | None:
    if not isinstance(data, list):
        return "data must be a list"
    if len(data) != len(kinds):
        return f"data must have {len(kinds)} values, not {len(data)}"
    for number, (value, kind) in enumerate(zip(data, kinds, strict=True)):
        if problem := _wrong_value(value, kind):
            return f"data[{number}] {problem}, not {value!r:.60}"
    return None


def _wrong_value(value: Any, kind: str) -> str | None:
    if kind in ("slider", "number"):
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "must be a number"
    if kind in ("textbox", "dropdown"):
        return None if value is None or isinstance(value, str) else _NO_TEXT
    if kind == "checkbox":
        return None if isinstance(value, bool) else "must be true or false"
    if kind == "video":
        is_file = isinstance(value, dict) and isinstance((value.get("video") or value).get("path"), str)
        return None if value is None or is_file else "must be an uploaded file"
    return None
