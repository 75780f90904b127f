"""LVCoT: a model says something of each part of a video, and reads it before it answers (TDC, arXiv 2504.10443).

    T frames -> M runs of T // M frames -> M texts, with times of the whole video -> <think> texts </think> question

Every model can be asked so; nothing is trained. A part is looked at like a video of its own: its times begin at 0 when
the model sees them, and are moved to those of the whole video when it has spoken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from mmllm.errors import InputError
from mmllm.inference.chain_config import ChainConfig
from mmllm.runtime.progress import Progress
from mmllm.times.answers import Answer, Span, Step, parse_answer
from mmllm.times.stamps import replace_stamps, stamp


class Asking(Protocol):
    """What a chain needs of `VideoQA`."""

    processor: Any

    def part_of(self, encoded: Any, frames: slice, span: Span) -> Any:
        """A run of a video's frames, as a video of its own."""

    def ask_all(self, encoded: Any, questions: Sequence[str], duration_s: float | None = None, **options: Any) -> Any:
        """Answers to questions about a video."""

    def tell(self, encoded: Any, requests: Sequence[str], duration_s: float, **options: Any) -> Any:
        """Answers to requests that do not ask when something happens."""


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A run of a video's frames."""

    frames: slice
    span: Span
    """From its first frame to the first one behind it, in seconds."""

    @property
    def length_s(self) -> float:
        """Seconds that it lasts."""
        return self.span.length_s


def parts_of(times_s: np.ndarray, duration_s: float, count: int) -> list[VideoPart]:
    """Equal runs of T // M frames; the remaining frames belong to no run.

    Args:
        times_s: float64, T.
        duration_s: length of the video.
        count: M.

    Raises:
        InputError: if a run lasts no time, because its frames are repetitions.
    """
    size = len(times_s) // count
    ends_s = np.append(times_s, duration_s)
    parts = [
        VideoPart(frames=slice(i * size, (i + 1) * size), span=_span(ends_s[i * size], ends_s[(i + 1) * size]))
        for i in range(count)
    ]
    if any(part.length_s <= 0 for part in parts):
        raise InputError(f"a chain of {count} parts: the video has too few different frames for so many")
    return parts


def _span(start_s: float, end_s: float) -> Span:
    return Span(float(start_s), max(float(start_s), float(end_s)))


def steps_of(
    qa: Asking,
    encoded: Any,
    questions: Sequence[str],
    chain: ChainConfig,
    duration_s: float,
    *,
    systems: Sequence[str] | None = None,
    decoding: Any = None,
) -> Iterator[list[Step]]:
    """What the model says of each part of a video: after each part a list of steps, one for each question.

    With `describe` all questions have the same step. There is none if the video is too short for a chain that follows
    its length.

    Args:
        qa: the model.
        encoded: the video.
        questions: in words, with stamps of the whole video.
        chain: the settings.
        duration_s: length of the video on the clock of the answers.
        systems: for each question its own system prompt.
        decoding: how answers are written, as for `VideoQA.ask_all`.
    """
    # Times of the answers may be on an annotated clock, which is a little faster or slower than the file's.
    times_s = encoded.times_s * (duration_s / encoded.duration_s)
    count = chain.parts_of(len(times_s), duration_s)
    texts = [chain.request] if chain.steps == "describe" else list(questions)
    for part in parts_of(times_s, duration_s, count) if count else ():
        own = [replace_stamps(text, partial(_inside, part=part)) for text in texts]
        ask = qa.tell if chain.steps == "describe" else qa.ask_all
        answers = ask(
            qa.part_of(encoded, part.frames, part.span),
            own,
            part.length_s,
            systems=None if chain.steps == "describe" else systems,
            max_new_tokens=chain.max_new_tokens,
            do_sample=False,
            decoding=decoding,
        )
        steps = [_moved(answer, part, duration_s, qa.processor) for answer in answers]
        yield steps * len(questions) if chain.steps == "describe" else steps


def _inside(time_s: float, part: VideoPart) -> str:
    """The stamp of a time of the whole video on the clock of a part; one outside of it is moved to its nearer end."""
    return stamp(min(max(time_s - part.span.start_s, 0.0), part.length_s))


def _moved(answer: Answer, part: VideoPart, duration_s: float, processor: Any) -> Step:
    """An answer about a part, with times of the whole video."""
    text = processor.writing.read(answer.raw, part.length_s).strip().removesuffix("</s>").strip()
    text = replace_stamps(text, lambda time_s: stamp(round(part.span.start_s + min(time_s, part.length_s), 3)))
    whole = parse_answer(text, duration_s)
    spans = () if whole.fallback else whole.spans
    return Step(span=part.span, text=text, spans=spans, raw=answer.raw)


def thought(steps: Sequence[Step], question: str, chain: ChainConfig) -> str:
    """The text of the last pass: what was said of the parts, then the question; the bare question without steps."""
    if not steps:
        return question
    if chain.steps == "describe":
        said = " ".join(step.text for step in steps)
    else:
        said = "\n".join(
            f"{stamp(round(step.span.start_s, 3))} - {stamp(round(step.span.end_s, 3))}: {step.text}" for step in steps
        )
    return f"<think>{said}</think>{question}"


def ask_in_chain(
    qa: Asking,
    encoded: Any,
    questions: Sequence[str],
    chain: ChainConfig,
    duration_s: float,
    *,
    systems: Sequence[str] | None = None,
    decoding: Any = None,
    progress: bool = False,
    **options: Any,
) -> list[Answer]:
    """The answers to questions about a video, each with its steps.

    Args:
        qa: the model.
        encoded: the video.
        questions: in words.
        chain: the settings.
        duration_s: length of the video, as for `VideoQA.ask_all`.
        systems: for each question its own system prompt.
        decoding: how answers are written, as for `VideoQA.ask_all`.
        progress: whether progress is shown.
        options: of `VideoQA.ask_all`, for the last pass.

    Raises:
        InputError: if there are more parts than frames.
    """
    count = chain.parts_of(len(encoded.times_s), duration_s)
    with Progress("ask in a chain", count + 1, "steps", shown=progress and count > 0) as bar:
        said: list[list[Step]] = [[] for _ in questions]
        for steps in steps_of(qa, encoded, questions, chain, duration_s, systems=systems, decoding=decoding):
            for earlier, step in zip(said, steps, strict=True):
                earlier.append(step)
            bar.advance()
        texts = [thought(steps, question, chain) for steps, question in zip(said, questions, strict=True)]
        about = list(questions) if chain.read == "question" and count else None
        answers = qa.ask_all(encoded, texts, duration_s, systems=systems, about=about, decoding=decoding, **options)
        bar.advance()
    return [replace(answer, steps=tuple(steps)) for answer, steps in zip(answers, said, strict=True)]
