"""Turns as they are in files, where a placeholder may not say yet which medium it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmllm.datasets.annotations import list_of, whole_text
from mmllm.errors import InputError
from mmllm.times.stamps import shortened

Kind = Literal["video", "image"]
Role = Literal["system", "user", "assistant"]

_PLACEHOLDER = re.compile(r"<(video|image)>")


@dataclass(frozen=True, kw_only=True)
class RawMedium:
    """A medium of a turn, before its path is checked."""

    kind: Kind
    path: Path | None = None
    """None: the next one of the row's list of media."""


Piece = str | RawMedium
"""Content of a turn, in order: texts and media."""


@dataclass(frozen=True, kw_only=True)
class RawTurn:
    """A turn with its text and media, before paths and spans are checked."""

    role: Role
    text: str
    """Without placeholders, and without white space at both ends."""
    media: list[RawMedium]
    places: list[int]
    """Number of characters of the text that stand before each medium."""
    spans: list[Any] | None
    """As they are in the file; None if the turn does not say any, which is not the empty list."""


def pieces_of(text: str) -> list[Piece]:
    """A text cut at its placeholders `<video>` and `<image>`."""
    pieces: list[Piece] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        pieces += [text[end : match.start()], RawMedium(kind="video" if match[1] == "video" else "image")]
        end = match.end()
    return [*pieces, text[end:]]


def raw_turn(turn: Any, speaker: str, roles: dict[str, Role], pieces: Sequence[Piece]) -> RawTurn:
    """A checked turn.

    Args:
        turn: the row's turn, which may have `spans`.
        speaker: the key of the speaker's name.
        roles: the allowed names and their roles.
        pieces: texts and media of the turn, in order.

    Raises:
        InputError: if the speaker's name is not allowed, or another turn than the user's has a medium.
    """
    name = turn.get(speaker)
    if not isinstance(name, str) or name not in roles:
        raise InputError(f"{speaker!r} must be one of {', '.join(roles)}, not {shortened(repr(name))}")
    role = roles[name]
    text, media, places = _laid_out(pieces)
    if media and role != "user":
        raise InputError(f"only user turns may have placeholders, not a turn of the {role}")
    spans = list_of(turn, "spans") if turn.get("spans") is not None else None
    return RawTurn(role=role, text=whole_text(text, "text"), media=media, places=places, spans=spans)


def _laid_out(pieces: Sequence[Piece]) -> tuple[str, list[RawMedium], list[int]]:
    """The text of all pieces, their media, and the place of each medium in the text.

    White space between two media is dropped, as it is at the ends of the text: `<image>\\n<image>\\nSame?` is two
    images and a question.
    """
    text, media, places = "", [], []
    between = ""  # text since the last medium
    for piece in pieces:
        if isinstance(piece, str):
            between += piece
            continue
        if between.strip():
            text += between if text else between.lstrip()
        between = ""
        media.append(piece)
        places.append(len(text))
    if between.strip():
        text += between if text else between.lstrip()
    text = text.rstrip()
    return text, media, [min(place, len(text)) for place in places]
