"""What annotations are turned into: questions that can be scored, and dialogues that can be trained on.

Times are kept in seconds: as stamps `<12.4>` inside a text, or as spans beside it. Nobody writes time tokens by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmllm.errors import InputError
from mmllm.times.answers import Answer, Span, parse_answer
from mmllm.times.stamps import stamp


@dataclass(frozen=True, kw_only=True)
class Media:
    """A video or an image that a turn shows."""

    kind: Literal["video", "image"]
    path: Path


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[Media, ...] = ()
    """Shown before the text, in this order."""
    spans: tuple[Span, ...] = ()
    """Intervals that the text is about; they are written in front of it."""

    @property
    def stamped(self) -> str:
        """The text with its spans in front, in seconds."""
        return " ".join([*(f"{stamp(span.start_s)} {stamp(span.end_s)}" for span in self.spans), self.text]).strip()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation about videos or images, to be trained on: what the assistant says is learned."""

    record_id: str
    family: str
    turns: tuple[Turn, ...]
    duration_s: float | None = None
    """The annotated length of the video, which converts times; None if it is not annotated."""

    @property
    def media(self) -> list[Media]:
        """All videos and images, in the order they are shown."""
        return [media for turn in self.turns for media in turn.media]

    def messages(self, write: Callable[[str], str] = str) -> list[dict[str, Any]]:
        """Chat messages as transformers and `MmllmProcessor` take them.

        Args:
            write: turns the seconds in what is said into what the model reads and writes, for example
                `lambda text: time_tokens.write(text, duration_s)`.
        """
        return [
            {
                "role": turn.role,
                "content": [
                    *({"type": media.kind, media.kind: str(media.path)} for media in turn.media),
                    {"type": "text", "text": turn.text if turn.role == "system" else write(turn.stamped)},
                ],
            }
            for turn in self.turns
        ]

    def questions(self) -> list[Question]:
        """The question of a dialogue of one question and one answer about one video.

        Raises:
            InputError: if it is another kind of dialogue, which cannot be scored.
        """
        spoken = [turn for turn in self.turns if turn.role != "system"]
        if [turn.role for turn in spoken] != ["user", "assistant"] or [m.kind for m in self.media] != ["video"]:
            raise InputError("only dialogues of one question and one answer about one video can be scored")
        asked, answered = spoken
        path = self.media[0].path
        question = Question(
            question_id=self.record_id,
            vid=path.stem if path.suffix else path.name,
            question=asked.text,
            answer=answered.text,
            spans=answered.spans,
            duration_s=self.duration_s,
            family=self.family,
            video=path,
        )
        return [question]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one video, with its annotated answer."""

    question_id: str
    vid: str
    question: str
    answer: str
    """May hold stamps such as `<12.4> <30> He chops onions.`"""
    duration_s: float | None
    """The annotated length of the video, which converts times in training and evaluation."""
    family: str = ""
    """The kind of question, by which scores are broken down."""
    video: Path | None = None
    """A file or a folder of frames."""
    spans: tuple[Span, ...] = ()
    """The true intervals, where they are not the first two stamps of the answer."""

    def truth(self) -> Answer:
        """The true sentence and intervals; no spans if the answer names fewer than two times.

        Of an answer with stamps only the first interval is true, as in the published protocol.
        """
        if self.spans:
            return Answer(text=self.answer.strip(), spans=self.spans, raw=self.answer, fallback=False)
        if self.duration_s is not None:
            answer = parse_answer(self.answer, self.duration_s)
            if not answer.fallback:
                return Answer(text=answer.text, spans=answer.spans[:1], raw=answer.raw, fallback=False)
        return Answer(text=self.answer.strip(), spans=(), raw=self.answer, fallback=False)

    def dialogue(self) -> Dialogue:
        """The question and its answer to be trained on.

        Raises:
            InputError: if it is not known where the video is.
        """
        if self.video is None:
            raise InputError(f"question {self.question_id!r}: it is not known where video {self.vid!r} is")
        media = (Media(kind="video", path=self.video),)
        return Dialogue(
            record_id=self.question_id,
            family=self.family,
            turns=(
                Turn(role="user", text=self.question.strip(), media=media),
                Turn(role="assistant", text=self.answer.strip(), spans=self.spans),
            ),
            duration_s=self.duration_s,
        )
