"""Chat messages: `{"role": "user", "content": ...}`, where the content is a text with placeholders or a list of items.

Items are those of transformers and of OpenAI: `{"type": "text", "text": ...}`, `{"type": "video", "video": path}` (also
with `path` or `url` in place of `video`), `{"type": "video_url", "video_url": {"url": path}}`, and the same for images.
An item without a path stands for the next medium in the row's list. Texts and media keep their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmllm.datasets.annotations import text_of
from mmllm.datasets.placeholders import Kind, Piece, RawMedium, RawTurn, Role, pieces_of, raw_turn
from mmllm.errors import InputError
from mmllm.times.stamps import shortened
from mmllm.video.names import is_address

ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
KINDS: dict[str, Kind] = {"video": "video", "video_url": "video", "image": "image", "image_url": "image"}
KEYS = ("role", "content", "spans")
ITEM_KEYS = ("type", "text", "path", "url", *KINDS)


def message_turns(turn: Any) -> RawTurn:
    """One entry of `messages`.

    Raises:
        InputError: if it is not a message.
    """
    if not isinstance(turn, dict) or "content" not in turn:
        raise InputError(f"a message must have 'role' and 'content', not {shortened(repr(turn))}")
    content = turn["content"]
    pieces: list[Piece] = []
    for item in content if isinstance(content, list) else [{"type": "text", "text": content}]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text":
            raw_text = item.get("text")
            pieces += pieces_of(raw_text if isinstance(raw_text, str) else text_of(item, "text"))
        elif isinstance(kind, str) and kind in KINDS:
            pieces.append(RawMedium(kind=KINDS[kind], path=_path(item, kind)))
        else:
            raise InputError(f"an item's type must be one of text, {', '.join(KINDS)}: {shortened(repr(item))}")
    return raw_turn(turn, "role", ROLES, pieces)


def _path(item: dict[str, Any], kind: str) -> Path | None:
    for key in (kind, "path", "url"):
        value = item.get(key)
        if isinstance(value, dict):
            value = value.get("url")
        if isinstance(value, str) and is_address(value):
            raise InputError(f"{value}: an address; only local files are read, so download it first")
        if isinstance(value, str) and value:
            return Path(value)
        if value is not None:
            raise InputError(f"a {KINDS[kind]} must be the path of a file, not {shortened(repr(value))}")
    return None
