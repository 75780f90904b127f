"""Turns as they are in files, where a placeholder may not say yet which medium it stands for."""

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
RawMedia = list[tuple[Kind, Path | None]]
"""Kind and path of media. A medium without a path is the next one of the row's list of media."""

_PLACEHOLDER = re.compile(r"<(video|image)>")


@dataclass(frozen=True, kw_only=True)
class RawTurn:
    """A turn with its text and media, before paths and spans are checked."""

    role: Role
    text: str
    media: RawMedia
    spans: list[Any]


def split_placeholders(text: str) -> tuple[str, RawMedia]:
    """A text without its placeholders `<video>` and `<image>`, and their media in order."""
    media: RawMedia = [("video" if kind == "video" else "image", None) for kind in _PLACEHOLDER.findall(text)]
    return _PLACEHOLDER.sub("", text), media


def raw_turn(turn: Any, speaker: str, roles: dict[str, Role], text: Any, media: RawMedia) -> RawTurn:
    """A checked turn.

    Args:
        turn: the row's turn, which may have `spans`.
        speaker: the key of the speaker's name.
        roles: the allowed names and their roles.
        text: the turn's text, without placeholders.
        media: the media of the turn's placeholders.

    Raises:
        InputError: if the speaker's name is not allowed, the text is not a text, or another turn than the user's has
            a placeholder.
    """
    name = turn.get(speaker)
    if not isinstance(name, str) or name not in roles:
        raise InputError(f"{speaker!r} must be one of {', '.join(roles)}, not {shortened(repr(name))}")
    role = roles[name]
    if not isinstance(text, str):
        raise InputError(f"a turn must be a text, not {shortened(repr(text))}")
    if media and role != "user":
        raise InputError(f"only user turns may have placeholders, not a turn of the {role}")
    spans = list_of(turn, "spans") if turn.get("spans") is not None else []
    return RawTurn(role=role, text=text, media=media, spans=spans)
