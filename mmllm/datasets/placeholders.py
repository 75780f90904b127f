"""Turns as files have them, before it is known which medium a placeholder stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmllm.datasets.annotations import list_of
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

Kind = Literal["video", "image"]
Role = Literal["system", "user", "assistant"]
Shown = list[tuple[Kind, Path | None]]
"""Media by kind; those without a path are taken from the row's lists, in order."""

_PLACEHOLDER = re.compile(r"<(video|image)>")


@dataclass(frozen=True, kw_only=True)
class RawTurn:
    """What one side says, and what it shows."""

    role: Role
    text: str
    media: Shown
    spans: list[Any]


def split_placeholders(text: str) -> tuple[str, Shown]:
    """A text without its `<video>` and `<image>`, and what they were, in order."""
    shown: Shown = [("video" if kind == "video" else "image", None) for kind in _PLACEHOLDER.findall(text)]
    return _PLACEHOLDER.sub("", text), shown


def raw_turn(turn: Any, speaker: str, roles: dict[str, Role], text: Any, media: Shown) -> RawTurn:
    """A checked turn.

    Args:
        turn: the row's turn, which may have `spans`.
        speaker: the key that says whose turn it is.
        roles: who may speak, and as what.
        text: what is said, without placeholders.
        media: what is shown.

    Raises:
        InputError: if nobody known speaks, the text is none, or an answer has a placeholder.
    """
    name = turn.get(speaker)
    if not isinstance(name, str) or name not in roles:
        raise InputError(f"{speaker!r} must be one of {', '.join(roles)}, not {shortened(repr(name))}")
    role = roles[name]
    if not isinstance(text, str):
        raise InputError(f"a turn must be a text, not {shortened(repr(text))}")
    if media and role != "user":
        raise InputError(f"a placeholder stands in what the {role} says")
    spans = list_of(turn, "spans") if turn.get("spans") is not None else []
    return RawTurn(role=role, text=text, media=media, spans=spans)
