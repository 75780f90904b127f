"""A question as both of OpenAI's forms ask it: who said what, about which media, under which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmllm.fields import shown
from mmllm.serving.fields import Fields
from mmllm.serving.limits import ServeLimits
from mmllm.serving.refusals import Refused

Role = Literal["system", "user", "assistant"]
_ROLES: Mapping[Any, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LARGEST_SEED = 2**63 - 1
_MOST_NOTES, _LONGEST_NAME, _LONGEST_NOTE = 16, 64, 512
"""Of a request's metadata, and characters of one."""
_GREEDY = 1e-5
"""Temperatures below are 0, as in vLLM: numbers that are divided by them can be too large for their type."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which frames of a video are looked at; None for what the model does by itself."""

    num_frames: int | None = None
    fps: float | None = None
    start_s: float | None = None
    end_s: float | None = None

    @classmethod
    def of(cls, fields: Fields, limits: ServeLimits) -> Look:
        """What an object of a request says.

        Raises:
            Refused: if two fields contradict each other, or a value is not allowed.
        """
        look = cls(
            num_frames=fields.whole("num_frames", 1, limits.frames),
            fps=fields.number("fps", 0, 1000, above=True),
            start_s=fields.number("start_s", 0),
            end_s=fields.number("end_s", 0, above=True),
        )
        if look.num_frames is not None and look.fps is not None:
            raise fields.refused("fps", "left out beside num_frames: both say how many frames are sampled")
        return look

    def over(self, other: Look, place: str) -> Look:
        """This look, and what it leaves open as the other says.

        Raises:
            Refused: if the part ends before it begins.
        """
        rates = ("num_frames", "fps")
        given = {name: value for name, value in vars(self).items() if value is not None}
        if any(name in given for name in rates):
            other = replace(other, num_frames=None, fps=None)
        look = replace(other, **given)
        if look.start_s is not None and look.end_s is not None and look.start_s >= look.end_s:
            message = f"{place}start_s = {look.start_s:g} must be before end_s = {look.end_s:g}"
            raise Refused(400, message, "bad_settings", f"{place}start_s")
        return look


@dataclass(frozen=True, kw_only=True)
class MediaPart:
    """A video or an image that a message names."""

    kind: Literal["video", "image", "file"]
    """A file is told by its content."""
    address: str
    look: Look
    place: str
    """Where it stands in the request."""


@dataclass(frozen=True, kw_only=True)
class Saying:
    """One message: texts and media in order."""

    role: Role
    parts: tuple[str | MediaPart, ...]

    @classmethod
    def of(cls, role: Any, parts: list[str | MediaPart], place: str) -> Saying:
        """A message. A single medium comes before the texts, where models are used to it; several stay in order.

        Raises:
            Refused: if there is no such role, or another than the user sends media.
        """
        if not isinstance(role, str) or role not in _ROLES:
            message = f"{place}role must be one of {', '.join(_ROLES)}, not {role!r:.60}"
            raise Refused(400, message, "bad_request", f"{place}role")
        media = [part for part in parts if isinstance(part, MediaPart)]
        if media and _ROLES[role] != "user":
            raise Refused(400, f"{place}role: only the user's messages hold media", "bad_request", f"{place}content")
        if len(media) == 1:
            parts = [*media, *(part for part in parts if isinstance(part, str))]
        return cls(role=_ROLES[role], parts=tuple(parts))


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that a request asks for."""

    model: str
    sayings: tuple[Saying, ...]
    stages: Mapping[str, Any] = field(default_factory=dict)
    """By slot, what replaces the model's own."""
    times_of: int = -1
    """Number of the video that times belong to."""
    decoding: str | None = None
    """How the answer is written; one token a pass if None."""
    most_tokens: int | None = None
    temperature: float = 0.0
    """0 for the likeliest words."""
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    keys: tuple[str, ...] | None = None
    """Keys of the JSON object that the answer is to be; None for text."""
    echoed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that a response repeats."""

    @property
    def media(self) -> list[MediaPart]:
        """All media in order."""
        return [part for saying in self.sayings for part in saying.parts if isinstance(part, MediaPart)]


def stages_of(fields: Fields) -> dict[str, Any]:
    """The stages that an object of a request replaces.

    Raises:
        Refused: if a value is no description of a stage.
    """
    stages: dict[str, Any] = {}
    named, policies = fields.texts("reducer", 8), fields.texts("context", 4)
    if "reducer" in fields:
        stages["reducers"] = [] if named == ("none",) else list(named)
    if (path := fields.text("path")) is not None:
        stages["path"] = path
    if "context" in fields:
        stages["context"] = list(policies)
    return stages


def checked(question: Question, limits: ServeLimits) -> Question:
    """The question, if it can be asked.

    Raises:
        Refused: naming what is missing or too much.
    """
    sayings, media = question.sayings, question.media
    if not sayings or sayings[-1].role != "user":
        raise Refused(400, "the last message must be the user's", "bad_request", "messages")
    if not any(isinstance(part, str) and part.strip() for part in sayings[-1].parts):
        raise Refused(400, "the last message has no text: ask something", "bad_request", "messages")
    if len(media) > limits.media:
        message = f"{len(media)} videos and images; at most {limits.media} are allowed"
        raise Refused(400, message, "bad_request", "messages")
    characters = sum(len(part) for saying in sayings for part in saying.parts if isinstance(part, str))
    if characters > limits.question_characters:
        message = f"the texts have {characters} characters; at most {limits.question_characters} are allowed"
        raise Refused(400, message, "context_length_exceeded", "messages")
    return question


def metadata_of(fields: Fields) -> dict[str, str]:
    """Notes of the client, which change nothing.

    Raises:
        Refused: if they are no texts, or larger than OpenAI's may be.
    """
    notes = fields.any("metadata")
    if notes is None:
        return {}
    if not isinstance(notes, Mapping) or len(notes) > _MOST_NOTES:
        raise fields.refused("metadata", f"an object of at most {_MOST_NOTES} texts")
    for name, text in notes.items():
        if len(name) > _LONGEST_NAME or not isinstance(text, str) or len(text) > _LONGEST_NOTE:
            place = f"metadata.{name:.{_LONGEST_NAME}}"
            limits = f"{_LONGEST_NOTE} characters, under a name of at most {_LONGEST_NAME}"
            raise Refused(400, f"{place} must be a text of at most {limits}, not {shown(text)}", "bad_settings", place)
    return dict(notes)


def sampling_of(fields: Fields) -> dict[str, Any]:
    """How words are chosen: fields of a `Question`."""
    temperature = fields.number("temperature", 0, 2)
    sampling = {
        "temperature": 0.0 if temperature is not None and temperature < _GREEDY else temperature,
        "top_p": fields.number("top_p", 0, 1, above=True),
        "seed": fields.whole("seed", -_LARGEST_SEED, _LARGEST_SEED),
    }
    return {name: value for name, value in sampling.items() if value is not None}
