"""Requests to `/v1/responses`."""

from __future__ import annotations

from typing import Any

from mmllm.serving.answer_forms import keys_of
from mmllm.serving.chat_requests import PartReading, messages_of, times_of
from mmllm.serving.fields import Fields
from mmllm.serving.limits import ServeLimits
from mmllm.serving.question import Look, MediaPart, Question, Saying, checked, sampling_of, stages_of

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
    question = Question(
        model=fields.text("model", required=True),
        sayings=tuple(sayings),
        stages=reading.stages,
        times_of=times_of(fields, reading.videos),
        decoding=fields.text("decoding"),
        most_tokens=fields.whole("max_output_tokens", 1, 2**31),
        stream=fields.flag("stream"),
        keys=_keys(fields),
        **sampling_of(fields),
    )
    if fields.flag("store"):
        raise fields.refused("store", "false: nothing is stored here")
    fields.text("user")
    fields.any("metadata")
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
    given = [fields.text("file_id"), fields.text("file_data" if medium == "file" else f"{medium}_url")]
    fields.text("filename")
    fields.text("detail")
    address = next((address for address in given if address is not None), None)
    read = reading.medium(medium, address, fields)
    fields.close()
    return read


def _keys(fields: Fields) -> tuple[str, ...] | None:
    text = fields.any("text")
    if text is None:
        return None
    inside = Fields(text, "text.")
    form = inside.any("format")
    inside.any("verbosity")
    inside.close()
    return None if form is None else keys_of(form, "text.format")
