"""Requests to `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmllm.fields import shown
from mmllm.serving.answer_forms import keys_of
from mmllm.serving.fields import Fields
from mmllm.serving.limits import ServeLimits
from mmllm.serving.question import Look, MediaPart, Question, Saying, checked, metadata_of, sampling_of, stages_of
from mmllm.serving.refusals import Refused

_MOST_STOPS = 4
DETAILS = ("auto", "low", "high", "original")
"""What OpenAI's clients may say of a picture; it changes nothing here."""
_PARTS = ("text", "image_url", "video_url", "file")
_ECHOED = ("name", "refusal", "annotations", "spans", "answer", "decoding", "context")
"""Keys of a message that a client may send back as it got them; they say nothing new."""


def chat_question(body: Any, limits: ServeLimits) -> Question:
    """The question of a request's body.

    Raises:
        Refused: naming the field.
    """
    fields = Fields(body)
    look, stages = Look.of(fields, limits).over(Look(), ""), stages_of(fields)
    reading, messages = PartReading(look, stages, limits), messages_of(fields, "messages", limits)
    sayings = [_saying(message, f"messages[{i}].", reading) for i, message in enumerate(messages)]
    fields.whole("n", 1, 1)
    stream = fields.flag("stream")
    question = Question(
        model=fields.text("model", required=True),
        sayings=tuple(sayings),
        stages=reading.stages,
        times_of=times_of(fields, reading.videos),
        decoding=fields.text("decoding"),
        most_tokens=_most_tokens(fields),
        stops=fields.texts("stop", _MOST_STOPS),
        stream=stream,
        include_usage=_includes_usage(fields, stream),
        keys=keys_of(form, "response_format") if (form := fields.any("response_format")) is not None else None,
        **sampling_of(fields),
    )
    fields.text("user")
    metadata_of(fields)
    fields.close()
    return checked(question, limits)


class PartReading:
    """Reads the parts of messages; their own settings come before those of the request.

    Args:
        look: of the request.
        stages: of the request.
        limits: of the server.
    """

    def __init__(self, look: Look, stages: dict[str, Any], limits: ServeLimits) -> None:
        self.look, self.stages, self.limits = look, stages, limits
        self.videos = self.parts = 0
        self._own: dict[str, Any] = {}

    def saying(
        self,
        fields: Fields,
        text: str,
        read_part: Callable[[Any, str, PartReading], str | MediaPart],
        echoed: Sequence[str],
    ) -> Saying:
        """One message.

        Args:
            fields: the message.
            text: the type of a part that is text.
            read_part: reads a part, which stands at a place.
            echoed: keys that a client may send back as it got them.
        """
        content = fields.any("content")
        parts = [{"type": text, "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise fields.refused("content", "a text, or a list of at least one part", "bad_request")
        self._count(len(parts))
        read = [read_part(part, f"{fields.place}content[{i}].", self) for i, part in enumerate(parts)]
        saying = Saying.of(fields.any("role"), read, fields.place)
        for name in echoed:
            fields.any(name)
        fields.close()
        return saying

    def medium(self, kind: Any, address: Any, fields: Fields) -> MediaPart:
        """A medium with the settings that stand beside its address."""
        place = fields.place.rstrip(".")
        if not isinstance(address, str):
            allowed = "data:, a file id, or http(s) of an allowed host"
            raise Refused(400, f"{place}: its address is missing: {allowed}", "bad_request", place)
        look = Look.of(fields, self.limits)
        for name, stage in stages_of(fields).items():
            if self._own.setdefault(name, stage) != stage:
                raise fields.refused(name.rstrip("s"), "the same for all media of a conversation")
            self.stages = {**self.stages, name: stage}
        if kind == "image" and look != Look():
            raise Refused(400, f"{place}: an image has no frames to choose", "bad_settings", place)
        self.videos += kind != "image"
        return MediaPart(kind=kind, address=address, look=look.over(self.look, fields.place), place=place)

    def _count(self, parts: int) -> None:
        """Refuses a conversation of too many parts."""
        self.parts += parts
        if self.parts > self.limits.parts:
            raise Refused(400, f"more than {self.limits.parts} parts of messages", "bad_request", "messages")


def times_of(fields: Fields, videos: int) -> int:
    """Number of the video that times belong to; the last one by default."""
    chosen = fields.whole("spans_of", 0, max(videos - 1, 0))
    return -1 if chosen is None else chosen


def messages_of(fields: Fields, name: str, limits: ServeLimits, allowed: str = "a list") -> list[Any]:
    """The messages of a field, none of which has been looked at.

    Raises:
        Refused: if there is none, or more than there may be parts, of which each has one at least.
    """
    messages = fields.any(name)
    if not isinstance(messages, list) or not 0 < len(messages) <= limits.parts:
        given = f"{len(messages)} messages" if isinstance(messages, list) else shown(messages)
        message = f"{name} must be {allowed} of 1 to {limits.parts} messages, not {given}"
        raise Refused(400, message, "bad_request", name)
    return messages


def _saying(message: Any, place: str, reading: PartReading) -> Saying:
    return reading.saying(Fields(message, place), "text", _part, _ECHOED)


def _part(part: Any, place: str, reading: PartReading) -> str | MediaPart:
    fields = Fields(part, place)
    kind = fields.word("type", _PARTS, required=True, code="bad_request")
    if kind == "text":
        text = fields.text("text", required=True)
        fields.close()
        return text
    inside = fields.any(kind)
    address = Fields({"url": inside} if isinstance(inside, str) else inside, f"{place}{kind}.")
    if kind == "file":
        given = one_address(address, "file_id", "file_data")
        address.text("filename")
    else:
        given = address.text("url")
        address.word("detail", DETAILS)
    medium = reading.medium(kind.removesuffix("_url"), given, fields)
    address.close()
    fields.close()
    return medium


def one_address(fields: Fields, *names: str) -> str | None:
    """The address that one of some fields gives; None if none does.

    Raises:
        Refused: if two of them are given.
    """
    given = {name: text for name in names if (text := fields.text(name)) is not None}
    first, *others = given or (None,)
    if others:
        raise fields.refused(others[0], f"left out beside {first}: a part is one medium", "bad_request")
    return next(iter(given.values()), None)


def _most_tokens(fields: Fields) -> int | None:
    given = [fields.whole(name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens")]
    counts = {count for count in given if count is not None}
    if len(counts) > 1:
        raise fields.refused("max_tokens", "left out beside max_completion_tokens: both say how long the answer is")
    return next(iter(counts), None)


def _includes_usage(fields: Fields, stream: bool) -> bool:
    options = fields.any("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.refused("stream_options", "left out without stream")
    inside = Fields(options, "stream_options.")
    wanted = inside.flag("include_usage")
    inside.flag("include_obfuscation")
    inside.close()
    return wanted
