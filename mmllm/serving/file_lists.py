"""The list of uploaded files, a page at a time, as OpenAI's clients ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmllm.serving.fields import Fields
from mmllm.serving.files import FileStore
from mmllm.serving.refusals import Refused

_MOST = 10_000
"""Files of a page."""
_DIGITS = 9


def file_list(files: FileStore, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the list.

    Args:
        files: all that are stored.
        query: `purpose`, `limit`, `order` (newest first by default) and `after`, the id of the last file of the page
            before.

    Raises:
        Refused: naming the field.
    """
    fields = Fields({name: _number(text) if name == "limit" else text for name, text in query.items()})
    purpose, after = fields.text("purpose"), fields.text("after")
    limit = fields.whole("limit", 1, _MOST) or _MOST
    order = fields.word("order", ("asc", "desc")) or "desc"
    fields.close()
    listed = files.uploaded() if order == "asc" else files.uploaded()[::-1]
    if after is not None:
        ids = [stored.id for stored in listed]
        if after not in ids:
            raise Refused(404, f"after: there is no file {after[:40]!r} in the list", "file_not_found", "after")
        listed = listed[ids.index(after) + 1 :]
    listed = [stored for stored in listed if purpose in (None, stored.purpose)]
    page = [stored.to_json() for stored in listed[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": page, **ends, "has_more": len(listed) > limit}


def _number(text: str) -> int | str:
    """A whole number of a query; other texts as they are."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else text
