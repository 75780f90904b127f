"""Questions, which can be scored, and dialogues, which can be trained on. All annotations are turned into these.

Times are in seconds: stamps `<12.4>` inside a text, or spans beside it. Annotations contain no time tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmllm.errors import InputError
from mmllm.times.answers import Answer, Span, absent_text, parse_answer
from mmllm.times.stamps import stamp


@dataclass(frozen=True, kw_only=True)
class Media:
    """A video or an image that a turn shows."""

    kind: Literal["video", "image"]
    path: Path
    audio: bool | None = None
    """Whether the sound of a video is heard; None if the row does not say, so that a model hears that can."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    text: str
    media: tuple[Media, ...] = ()
    places: tuple[int, ...] = ()
    """Number of characters of the text that stand before each medium; if empty, all media stand before the text."""
    spans: tuple[Span, ...] = ()
    """The intervals of the text; they are written in front of it."""
    absent: bool = False
    """What was asked for does not happen: the empty set of intervals. It is written in front, in words."""

    @property
    def stamped(self) -> str:
        """The text with its spans in front, in seconds, or with the words that there are none."""
        if self.absent:
            return absent_text(self.text)
        return " ".join([*(f"{stamp(span.start_s)} {stamp(span.end_s)}" for span in self.spans), self.text]).strip()

    @property
    def pieces(self) -> list[str | Media]:
        """Texts and media in their order, the spans in front of the first text. There is always a text."""
        if not any(self.places):
            return [*self.media, self.stamped]
        pieces: list[str | Media] = []
        begin = 0
        for place, medium in zip(self.places, self.media, strict=True):
            pieces += [self.text[begin:place], medium]
            begin = place
        pieces.append(self.text[begin:])
        return [piece for piece in pieces if piece != ""]


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation about videos or images. Training learns the assistant's turns."""

    record_id: str
    family: str
    turns: tuple[Turn, ...]
    duration_s: float | None = None
    """The annotated length of the video, by which times are converted; None if it is not annotated."""
    fps: float | None = None
    """Images a second of its folders of frames; None if it is not given."""

    @property
    def media(self) -> list[Media]:
        """All videos and images, in the order of the turns."""
        return [media for turn in self.turns for media in turn.media]

    def messages(self, write: Callable[[str], str] = str) -> list[dict[str, Any]]:
        """Chat messages as transformers and `MmllmProcessor` take them.

        Args:
            write: converts stamps in seconds to the model's form of times, for example
                `lambda text: time_tokens.write(text, duration_s)`.
        """

        def item(piece: str | Media, role: str) -> dict[str, Any]:
            if isinstance(piece, Media):
                heard = {} if piece.audio is None else {"audio": piece.audio}
                return {"type": piece.kind, piece.kind: str(piece.path), **heard}
            return {"type": "text", "text": piece if role == "system" else write(piece)}

        return [
            {"role": turn.role, "content": [item(piece, turn.role) for piece in turn.pieces]} for turn in self.turns
        ]

    def questions(self) -> list[Question]:
        """A question for each answer of the dialogue, which must show one video, in its first question.

        The turns before a question are its `history`.

        Raises:
            InputError: if it has other media, or its last question has no answer, and so it cannot be scored.
        """
        turns = [turn for turn in self.turns if turn.role != "system"]
        system = " ".join(turn.text for turn in self.turns if turn.role == "system")
        kinds = [media.kind for media in self.media]
        if kinds != ["video"] or not turns[0].media:
            raise InputError(
                "only dialogues about one video, which the first question shows, can be scored; this one shows "
                f"{', '.join(kinds) or 'nothing'}"
            )
        path = self.media[0].path
        pairs = list(zip(turns[::2], turns[1::2], strict=True))
        return [
            Question(
                question_id=self.record_id if len(pairs) == 1 else f"{self.record_id}_turn{number + 1}",
                vid=path.stem if path.suffix else path.name,
                question=question.text,
                answer=answer.text,
                spans=answer.spans,
                absent=answer.absent,
                duration_s=self.duration_s,
                family=self.family,
                video=path,
                audio=self.media[0].audio,
                fps=self.fps,
                history=tuple((asked.text, answered.stamped) for asked, answered in pairs[:number]),
                system=system,
            )
            for number, (question, answer) in enumerate(pairs)
        ]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a video, with its annotated answer."""

    question_id: str
    vid: str
    question: str
    answer: str
    """May hold stamps such as `<12.4> <30> He chops onions.`"""
    duration_s: float | None
    """The annotated length of the video, by which times are converted in training and evaluation."""
    family: str = ""
    """The kind of question. Scores are also given for each kind."""
    group: str = ""
    """A part of the data set, such as names that were never trained on. Scores are also given for each part."""
    video: Path | None = None
    """A file or a folder of frames."""
    audio: bool | None = None
    """Whether the video's sound is heard; None if the row does not say."""
    fps: float | None = None
    """Images a second of the folder of frames; None if it is not given."""
    spans: tuple[Span, ...] = ()
    """The true intervals, if they are not given by the first two stamps of the answer."""
    absent: bool = False
    """The true answer is the empty set of intervals: what is asked for does not happen."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier questions about the video with their annotated answers, times in seconds."""
    system: str = ""
    """The row's own system prompt; the model's own counts if it is empty."""

    def __post_init__(self) -> None:
        if self.absent and self.spans:
            raise InputError(
                f"question {self.question_id!r} has intervals, and is said not to happen: give one of both"
            )

    def truth(self) -> Answer:
        """The true sentence and intervals; without spans if the answer has fewer than two times, or if it is absent.

        Of an answer with stamps, only the first interval counts, as in the published protocol.
        """
        if self.spans:
            return Answer(text=self.answer.strip(), spans=self.spans, raw=self.answer, fallback=False)
        if self.duration_s is not None and not self.absent:
            answer = parse_answer(self.answer, self.duration_s)
            if answer.spans and not answer.fallback:
                return Answer(text=answer.text, spans=answer.spans[:1], raw=answer.raw, fallback=False)
        return Answer(text=self.answer.strip(), spans=(), raw=self.answer, fallback=False)

    def dialogue(self) -> Dialogue:
        """The question and its answer as a dialogue, to be trained on.

        Raises:
            InputError: if the question has no path of its video.
        """
        if self.video is None:
            raise InputError(
                f"question {self.question_id!r} has no path of its video {self.vid!r}: give the folder of videos"
            )
        media: tuple[Media, ...] = (Media(kind="video", path=self.video, audio=self.audio),)
        turns = [Turn(role="system", text=self.system)] if self.system else []
        for question, answer in self.history:
            turns += [Turn(role="user", text=question, media=media), Turn(role="assistant", text=answer)]
            media = ()  # shown once
        turns += [
            Turn(role="user", text=self.question.strip(), media=media),
            Turn(role="assistant", text=self.answer.strip(), spans=self.spans, absent=self.absent),
        ]
        return Dialogue(
            record_id=self.question_id,
            family=self.family,
            turns=tuple(turns),
            duration_s=self.duration_s,
            fps=self.fps,
        )
