"""An answer as a JSON object, for clients that drop fields which they do not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmllm.serving.refusals import Refused
from mmllm.times.answers import Answer
from mmllm.times.stamps import replace_stamps

KEYS = ("answer", "spans")
_ENDS = ("start_s", "end_s")


def spans_of(answer: Answer) -> list[dict[str, float]]:
    """The spans that an answer names; none if it names no time."""
    spans = () if answer.fallback else answer.spans
    return [{"start_s": round(span.start_s, 3), "end_s": round(span.end_s, 3)} for span in spans]


def sentence_of(answer: Answer) -> str:
    """What an answer says beside its span; further times in it are seconds."""
    return replace_stamps(answer.text, lambda time_s: f"{time_s:g} s")


def content_fields(answer: Answer) -> dict[str, Any]:
    """Spans and sentence of an answer, by the names in `KEYS`; and what a decoding method or policies of the cache did,
    by the names of those settings."""
    beside = {"decoding": answer.decoding, "context": answer.context}
    given = {name: said for name, said in beside.items() if said is not None}
    return {"spans": spans_of(answer), "answer": sentence_of(answer), **given}


def as_json(answer: Answer, keys: tuple[str, ...]) -> str:
    """The answer as a JSON object with these keys."""
    whole = content_fields(answer)
    return json.dumps({key: whole[key] for key in keys}, ensure_ascii=False)


def keys_of(form: Any, place: str) -> tuple[str, ...] | None:
    """The keys that a `response_format` asks for; None for text.

    Args:
        form: `{"type": "text"}`, `{"type": "json_object"}`, or `json_schema` with a schema, inside an object
            `json_schema` (chat completions) or beside the type (responses).
        place: where it stands, for messages.

    Raises:
        Refused: if it asks for something else than an answer and its spans.
    """
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return KEYS
    if kind != "json_schema":
        raise Refused(400, f"{place}.type must be text, json_object or json_schema", "bad_settings", place)
    inside = form.get("json_schema", form)
    schema = inside.get("schema") if isinstance(inside, Mapping) else None
    if not isinstance(schema, Mapping):
        raise Refused(400, f"{place} needs a schema", "bad_settings", place)
    wanted = _properties(schema, schema)
    if not wanted or any(key not in KEYS for key in wanted):
        other = next((key for key in wanted if key not in KEYS), "nothing")
        raise Refused(400, f"{place}: an answer has {' and '.join(KEYS)}, not {other!r:.60}", "bad_settings", place)
    items = _properties(_resolved(wanted.get("spans"), schema).get("items"), schema)
    if any(key not in _ENDS for key in items):
        raise Refused(400, f"{place}: a span has {' and '.join(_ENDS)} only", "bad_settings", place)
    return tuple(wanted)


def _properties(part: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = _resolved(part, schema).get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _resolved(part: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of a schema; a reference to a definition is followed once."""
    reference = part.get("$ref") if isinstance(part, Mapping) else None
    if isinstance(reference, str) and reference.startswith("#/"):
        part = schema
        for name in reference[2:].split("/"):
            part = part.get(name) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}
