"""Requests to `/v1/responses`."""

from __future__ import annotations

from typing import Any

from mmllm.serving.answer_forms import keys_of
from mmllm.serving.chat_requests import DETAILS, PartReading, messages_of, one_address, times_of
from mmllm.serving.fields import Fields
from mmllm.serving.limits import ServeLimits
from mmllm.serving.question import Look, MediaPart, Question, Saying, checked, metadata_of, sampling_of, stages_of

_TEXTS = ("input_text", "output_text")
_MEDIA = {"input_image": "image", "input_video": "video", "input_file": "file"}
_ECHOED = ("id", "status", "type", "phase")
_ECHOED_IN_TEXT = ("annotations", "logprobs", "spans", "answer", "decoding", "context")
"""Keys that a client may send back as it got them; they say nothing new."""


def response_question(body: Any, limits: ServeLimits) -> Question:
    """The question of a request's body.

    Raises:
        Refused: naming the field.
    """
    fields = Fields(body)
    look, stages = Look.of(fields, limits).over(Look(), ""), stages_of(fields)
    reading = PartReading(look, stages, limits)
    sayings = [_saying(item, f"input[{i}].", reading) for i, item in enumerate(_items(fields, limits))]
    if (instructions := fields.text("instructions")) is not None:
        sayings.insert(0, Saying.of("system", [instructions], "instructions"))
    text = _text(fields)
    echoed = {"instructions": instructions, "metadata": metadata_of(fields), "text": text}
    question = Question(
        model=fields.text("model", required=True),
        sayings=tuple(sayings),
        stages=reading.stages,
        times_of=times_of(fields, reading.videos),
        decoding=fields.text("decoding"),
        most_tokens=fields.whole("max_output_tokens", 1, 2**31),
        stream=fields.flag("stream"),
        keys=keys_of(text["format"], "text.format"),
        echoed={**echoed, "max_output_tokens": fields.values.get("max_output_tokens"), "user": fields.text("user")},
        **sampling_of(fields),
    )
    if fields.flag("store"):
        raise fields.refused("store", "false: nothing is stored here")
    fields.close()
    return checked(question, limits)


def _items(fields: Fields, limits: ServeLimits) -> list[Any]:
    given = fields.any("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return messages_of(fields, "input", limits, "a text, or a list")


def _saying(item: Any, place: str, reading: PartReading) -> Saying:
    fields = Fields(item, place)
    if fields.values.get("type", "message") != "message":
        raise fields.refused("type", "message", "bad_request")
    return reading.saying(fields, "input_text", _part, _ECHOED)


def _part(part: Any, place: str, reading: PartReading) -> str | MediaPart:
    fields = Fields(part, place)
    kind = fields.word("type", (*_TEXTS, *_MEDIA), required=True, code="bad_request")
    if kind in _TEXTS:
        text = fields.text("text", required=True)
        for name in _ECHOED_IN_TEXT:
            fields.any(name)
        fields.close()
        return text
    medium = _MEDIA[kind]
    address = one_address(fields, "file_id", "file_data" if medium == "file" else f"{medium}_url")
    fields.text("filename")
    fields.word("detail", DETAILS)
    read = reading.medium(medium, address, fields)
    fields.close()
    return read


def _text(fields: Fields) -> dict[str, Any]:
    """What is said of the answer's text, with its form; how long it is to be is checked, and changes nothing."""
    given = fields.any("text")
    inside = Fields({} if given is None else given, "text.")
    inside.word("verbosity", ("low", "medium", "high"))
    inside.any("format")
    inside.close()
    return {"format": {"type": "text"}, **inside.values}
