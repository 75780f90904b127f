"""A question on its way to the LLM: its model, what is there of its media, and in the end its job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mmllm.app.asker import Asker
from mmllm.inference.prompts import Medium, Prompts, Turn
from mmllm.interfaces import Decoding
from mmllm.serving.files import StoredFile
from mmllm.serving.jobs import Event, Job
from mmllm.serving.models import LoadedModel
from mmllm.serving.question import MediaPart, Question


@dataclass(kw_only=True, eq=False)
class Preparation:
    """What is known of a question so far."""

    question: Question
    asker: Asker
    emit: Callable[[Event], None]
    """Takes what comes of the answer."""
    model: LoadedModel
    """Whoever prepares the question releases it."""
    prompts: Prompts[Any]
    method: Decoding | None
    """How the answer is written; None for the model's own way."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    """Place of a part -> its file."""
    media: dict[str, Medium] = field(default_factory=dict)
    """Place of a part -> the encoded video or image."""
    job: Job | None = None

    @property
    def parts(self) -> list[MediaPart]:
        """Videos and images of the question, in order."""
        return [part for saying in self.question.sayings for part in saying.parts if isinstance(part, MediaPart)]

    @property
    def missing(self) -> list[MediaPart]:
        """Those that are not encoded yet."""
        return [part for part in self.parts if part.place not in self.media]

    @property
    def turns(self) -> list[Turn]:
        """The conversation with its media."""
        return [
            Turn(
                role=saying.role,
                content=tuple(part if isinstance(part, str) else self.media[part.place] for part in saying.parts),
            )
            for saying in self.question.sayings
        ]
