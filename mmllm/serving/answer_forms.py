"""An answer as a JSON object, for clients that drop fields which they do not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmllm.serving.answer_schemas import SHAPES, AnswerSchema
from mmllm.serving.fields import Fields
from mmllm.serving.refusals import Refused
from mmllm.times.answers import Answer
from mmllm.times.stamps import replace_stamps

KEYS = tuple(SHAPES)


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
        Refused: if it asks for something that not every answer with its spans is.
    """
    fields = Fields(form, f"{place}.")
    kind = fields.word("type", ("text", "json_object", "json_schema"), required=True)
    if kind != "json_schema":
        fields.close()
        return KEYS if kind == "json_object" else None
    given = fields.any("json_schema")
    inside = fields if given is None else Fields(given, f"{place}.json_schema.")
    schema = _schema(inside)
    fields.close()
    if (problem := schema.problem()) is not None:
        raise Refused(400, f"{inside.place}schema: {problem}", "bad_settings", f"{inside.place}schema")
    return tuple(schema.keys)


def _schema(fields: Fields) -> AnswerSchema:
    """The schema of an object, which may have a name beside it."""
    for name in ("name", "description"):
        fields.text(name)
    fields.flag("strict")
    schema = fields.any("schema")
    if not isinstance(schema, Mapping):
        raise fields.refused("schema", "a JSON schema")
    fields.close()
    return AnswerSchema(schema)
